"""Your own photographs, from a folder of *.jpg, class/*.jpg or split/class/*.jpg (png, webp, ..); the
network is small enough to try on a CPU.

noisesched train --config=configs/image_folder.py --workdir=runs/photos --config.data.path=FOLDER
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.data.name = "image_folder"
    config.data.image_size = 32
    config.data.channels = 3
    config.data.flip = True
    config.model.width = 32
    config.model.multipliers = (1, 2, 2, 2)
    config.model.attention = (8,)
    config.optimizer.learning_rate = 1e-3
    config.training.num_steps = 10_000
    config.training.ema_decay = 0.999
    return config
