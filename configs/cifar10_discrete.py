"""CIFAR-10 as in DDPM: levels drawn from the linear table of 1,000 steps, the network told the timestep. Otherwise cifar10.py.

noisesched train --config=configs/cifar10_discrete.py --workdir=runs/cifar10_discrete --config.data.data_dir=DIR
"""

from configs import cifar10


def get_config():
    config = cifar10.get_config()
    config.schedule = "discrete(linear, num_steps=1000)"
    config.conditioning.kind = "timestep"
    config.conditioning.table = config.schedule
    return config
