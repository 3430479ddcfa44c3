"""As DDPM does it: levels drawn from the 1000-step linear table, and the network told the timestep. Else as digits.py.

noisesched train --config=configs/digits_discrete.py --workdir=runs/digits_discrete
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.schedule = "discrete(linear, num_steps=1000)"
    config.conditioning.kind = "timestep"
    config.conditioning.table = config.schedule
    return config
