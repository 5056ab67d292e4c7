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
from training.options import TrainArgs
from training.state import TrainState
from training.generator import GeneratorTask
from models.config import Drawing
from training.task import step_context
for n in ('tiny-llamagen','tiny-npp'):
    d=np.load(F+n+'/expected.npz'); s=json.load(open(F+n+'/settings.json'))
    m=load_checkpoint(F+n+'/checkpoint.pt'); c=s['training']
    st=dict(schedule='stages',patch_level=c['patch_level'],epoch_rate=c['epoch_rate'],warmup_epochs=c['warmup_epochs'],decay_ratio=c['decay_ratio'],end_lr=c['end_lr']) if 'warmup_epochs' in c else dict(warmup_epochs=0)
    from dataclasses import replace
    m.config=replace(m.config,dropout=0.0,label_drop=0.0)
    for mod in m.modules():
        if isinstance(mod,torch.nn.Dropout): mod.p=0.0
    codes=torch.from_numpy(d['codes']); labels=torch.from_numpy(d['labels'])
    args=TrainArgs(epochs=c['epochs'],batch_size=len(labels),lr=c['lr'],betas=tuple(c['betas']),weight_decay=c['weight_decay'],clip_grad=1.0,**st)
    task=GeneratorTask(m,args,m.Drawing())
    state=TrainState(task,args,c['steps_per_epoch']*len(labels),torch.device('cpu'),torch.float32)
    for i in range(12):
        state.epoch,state.step_in_epoch=divmod(i,c['steps_per_epoch'])
        rate=state.learning_rate
        ctx=step_context(0,i,0,torch.device('cpu'),state.progress)
        loss=task.loss(([codes],labels),ctx); loss.value.backward()
        norm=torch.nn.utils.clip_grad_norm_(m.parameters(),1.0)
        state.update(rate)
        print(i,args.patch_side(state.epoch),d['train_side'][i],abs(loss.value.item()-d['train_loss'][i]),abs(norm.item()/d['train_grad_norm'][i]-1),abs(rate-d['train_lr'][i]))
    for k in d:
        if k.startswith('train_norm/'):
            v=m.get_parameter(k.split('/')[1]).norm().item(); assert abs(v/d[k]-1)<1e-4,(k,v,d[k])
