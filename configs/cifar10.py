"""CIFAR-10 from tensorflow-datasets (prepared once as array_record, see README.md), for one GPU or a small TPU slice.

noisesched train --config=configs/cifar10.py --workdir=runs/cifar10 --config.data.data_dir=DIR
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.channels = 3
    config.data.flip = True
    config.data.num_workers = 8
    config.model.width = 128
    config.model.multipliers = (1, 2, 2, 2)
    config.model.blocks = 2
    config.model.attention = (16,)
    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 5000
    config.optimizer.decay = "constant"
    config.training.num_steps = 500_000
    config.training.batch_size = 128
    config.training.ema_decay = 0.9999
    config.training.log_every = 200
    config.training.checkpoint_every = 10_000
    config.preview.every = 10_000
    config.preview.steps = 50
    return config
