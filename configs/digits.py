"""The base experiment: a log-SNR-conditioned UNet on scikit-learn's handwritten digits (8x8, in the package, no network).

    noisesched train --config=configs/digits.py --workdir=runs/digits

About 2 minutes on 2 CPU cores; the loss falls to about 0.265, and the digits are legible under any schedule. 3,000 steps with
attention at 4x4 bring samples closer to the real images, at twice the time. This page states every setting; the other configs
import it and state what differs. Override one from the command line with --config.group.name=value.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.seed = 0  # of parameters, data order and noise: a run is a function of its config

    # The images. Scaled to [-1, 1] on the device.
    config.data = ConfigDict()
    config.data.name = "digits"  # digits | brightness | image_folder | the name of a prepared tensorflow-datasets data set
    config.data.path = ""  # image_folder: the folder that holds split/class/*.jpg|png
    config.data.data_dir = ""  # where prepared data sets are, a folder or gs:// bucket; "": a cache in the home folder
    config.data.split = "train"  # tensorflow-datasets' notation, e.g. "train[:90%]"
    config.data.image_size = 8  # pixels a side; other sizes are cropped to a square and resized
    config.data.channels = 1  # 1 gray | 3 colour
    config.data.flip = False  # random left-right flips
    config.data.num_workers = 0  # input worker processes; 0: threads, enough up to some thousand images a second

    # Which noise levels training draws: any schedule, e.g. "zero_terminal(scaled_linear)", or a T-step table:
    # "discrete(linear, num_steps=1000)". `noisesched plot --help` lists them. "recommended": cosine up to 64 pixels, beyond
    # them shifted, "shifted(cosine, image_size=256)"; the workdir's config.json says which.
    config.schedule = "recommended"

    # The weight of a level's loss: eps | x | v | vlb | min_snr(gamma=5) | p2(k=1, gamma=1) | edm(sigma_data=0.5) |
    # sigmoid(bias=2). The network's own squared error, unweighted, is the one named as what it predicts.
    config.weighting = "v"
    config.noise_offset = 0.0  # std of a normal number added to the noise of all pixels of a channel

    # What the network is told of the noise level.
    config.conditioning = ConfigDict()
    config.conditioning.kind = "log_snr"  # log_snr | sigma | timestep | none
    config.conditioning.table = ""  # timestep: the table whose steps are told, e.g. "discrete(linear, num_steps=1000)"
    config.conditioning.translation = "nearest"  # timestep: how a level becomes one, nearest | interpolated

    # The network. Level i works at image_size / 2^i with width * multipliers[i] channels.
    config.model = ConfigDict()
    config.model.prediction = "v"  # what it outputs: v | x | eps (eps not with a schedule that ends at zero SNR)
    config.model.width = 24
    config.model.multipliers = (1, 2, 2)
    config.model.blocks = 1  # residual blocks per level
    config.model.attention = ()  # image sizes at which blocks are followed by self-attention, e.g. (4,)
    config.model.heads = 4
    config.model.dropout = 0.0
    config.model.num_classes = 0  # 0: without labels; K: told one of K classes
    config.model.label_dropout = 0.1  # with classes: how often the label is left out
    config.model.dtype = "float32"  # of the computation: float32 | bfloat16; parameters are float32

    # AdamW. Linear warm-up, then decay to 0 over the run.
    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.decay = "cosine"  # constant | linear | cosine
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0  # of the gradient; 0: no clipping

    config.training = ConfigDict()
    config.training.num_steps = 1600
    config.training.batch_size = 64  # over all devices
    config.training.accumulate = 1  # parts a batch is computed in, to save memory
    config.training.steps_per_dispatch = 1  # steps in one call of the device
    config.training.parallel = "pmap"  # pmap | jit (sharded) | fsdp (state cut over the devices, too): the same numbers
    config.training.ema_decay = 0.995  # of the parameters that samples are made with
    config.training.skip_nonfinite = 0  # updates, in the whole run, left out as their loss or gradient is not finite; 0: stop
    config.training.log_every = 100
    config.training.checkpoint_every = 1000
    config.training.keep_checkpoints = 2  # the newest so many; and beside them
    config.training.keep_every = 0  # those at multiples of so many steps, for ever; 0: none
    config.training.keep_best = 0  # so many, of the least held-out loss of the averaged parameters; 0: it is not measured
    config.training.best_split = "test"  # the held-out images, the first 1,024 of it: notation of data.split

    # A grid of samples, made during training from the same noise.
    config.preview = ConfigDict()
    config.preview.every = 1000  # steps; 0: never
    config.preview.num_images = 64
    config.preview.schedule = "trained"  # any schedule; "trained": the one trained with
    config.preview.steps = 25
    config.preview.method = "ddim"
    return config
