"""Digits of a chosen class, by classifier-free guidance: the network is told the class, except for a tenth of the time.

noisesched train --config=configs/digits_classes.py --workdir=runs/classes
noisesched sample --workdir=runs/classes --guidance none "cfg(3)" "cfg(3, rescaled(0.7))" --out=samples/guided
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.model.num_classes = 10
    return config
