import numpy as np, torch, json, sys
from models import load_checkpoint, sample
from models.draw import truncate
from models.llamagen.patches import grid_rotation
F='/work/shared/fixtures/'
for n in ('tiny-llamagen','tiny-npp'):
    d=np.load(F+n+'/expected.npz'); s=json.load(open(F+n+'/settings.json'))
    m=load_checkpoint(F+n+'/checkpoint.pt')
    codes=torch.from_numpy(d['codes']); labels=torch.from_numpy(d['labels'])
    for p in s['sides']:
        m.zero_grad(); logits,loss=m([codes],labels,patch_size=p); loss.backward()
        print(n,p,abs(logits.detach().numpy()-d[f'logits_P{p}']).max(), abs(loss.item()-d[f'loss_P{p}']))
        tot=torch.stack([q.grad.norm() for q in m.parameters() if q.grad is not None]).norm().item()
        print('  grad',tot, d[f'gradnorm_P{p}_total'])
        for k in d:
            if k.startswith(f'gradnorm_P{p}/'):
                g=m.get_parameter(k.split('/')[1]).grad; g=0 if g is None else g.norm().item()
                assert abs(g-d[k])<=1e-4*d[k]+1e-10,(k,g,d[k])
        r=grid_rotation(codes.shape[1]//p, m.config.llama_config.head_dim, torch.device('cpu')); print('  rope',abs(r.numpy()-d[f'rope_P{p}']).max())
    with torch.no_grad(): print('null',abs(m([codes],torch.full_like(labels,m.unconditional_label))[0].numpy()-d['logits_null_P1']).max())
    for i,c in enumerate(s['samples']):
        out=sample(m,labels,cfg=c['cfg'],cfg_interval=c['cfg_interval'],temperature=0.0)
        print('sample',i,(out.codes[0].numpy()==d[f'sample_codes_{i}']).all())
    for i,f in enumerate(s['filters']):
        e=truncate(torch.from_numpy(d['filter_logits']),f['top_k'],f['top_p']); print(i,np.array_equal(e.numpy(),d[f'filtered_{i}']),end=' ')
        if f'filtered_tied_{i}' in d: print('tied',np.array_equal(truncate(torch.from_numpy(d['filter_tied_logits']),f['top_k'],f['top_p']).numpy(),d[f'filtered_tied_{i}']))
    if 'ema_logits_P1' in d:
        e=load_checkpoint(F+n+'/checkpoint.pt',use_ema=True)
        with torch.no_grad(): print('ema',abs(e([codes],labels)[0].numpy()-d['ema_logits_P1']).max())
