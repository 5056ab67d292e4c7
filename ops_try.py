import torch,time
from models.llamagen.model import LlamaGen
from models.llamagen.config import *
from models.sampling import checked_drawing
from benchmarks.measure import *
m=LlamaGen(LlamaGenConfig()).eval()
print(sum(p.numel() for p in m.parameters()))
import benchmarks.measure as M
d=checked_drawing(m,{'cfg':1.0})
s=m.sampler(1,d)
g=s.steps(torch.tensor([207]),[0])
with torch.inference_mode():
    next(g);next(g)
    C=[v for k,v in vars(M).items() if isinstance(v,type) and 'Count' in k][0]
    with C() as c: next(g)
    print(c.__dict__)
    t=time.perf_counter()
    for _ in range(30): next(g)
    print((time.perf_counter()-t)/30*256,'s an image')
