"""Digits as in DDPM: levels drawn from the linear table of 1,000 steps, the network told the timestep. Otherwise digits.py.

noisesched train --config=configs/digits_discrete.py --workdir=runs/digits_discrete
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.schedule = "discrete(linear, num_steps=1000)"
    config.conditioning.kind = "timestep"
    config.conditioning.table = config.schedule
    return config
