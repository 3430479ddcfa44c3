"""A diffusion transformer (DiT) on the digits: is a finding about schedules one about UNets?

    noisesched train --config=configs/digits_dit.py --workdir=runs/digits_dit

About 5 minutes on 2 CPU cores. Compare with the UNet of `digits.py` by configs/compare.py.
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.model.kind = "dit"
    config.model.width = 96  # of the tokens
    config.model.blocks = 4
    config.optimizer.learning_rate = 1e-3
    return config
