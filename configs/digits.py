"""The base experiment: a log-SNR-conditioned UNet on scikit-learn's handwritten digits (8x8, in the package, no network).

    noisesched train --config=configs/digits.py --workdir=runs/digits

About 2 minutes on 2 CPU cores; the loss falls to about 0.27, and the digits are legible under any schedule. Width 24 with
attention at 4x4 brings samples a little closer to the real images, in twice the time. This page has every setting; the other
configs import it and state what differs. Any setting can be overridden on the command line: --config.group.name=value.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.seed = 0  # for parameters, data order and noise: a run is a function of its config

    # The images. Scaled to [-1, 1] on the device.
    config.data = ConfigDict()
    # digits | brightness | image_folder | cifar10_binary | huggingface | arrays | a prepared data set of tensorflow-datasets
    config.data.name = "digits"
    # For image_folder: the folder that holds *.jpg, class/*.jpg or split/class/*.jpg (png, webp, ..: what Pillow reads); for
    # cifar10_binary: cifar-10-binary.tar.gz; for huggingface: the folder that save_to_disk of its library `datasets` wrote; for
    # arrays: a .npy of images [N, H, W, C] or [N, H, W], whose split is "train", or a .npz of the arrays train, test, .., with
    # labels as train_labels, .. (or of images and labels, whose split is "train").
    config.data.path = ""
    config.data.data_dir = ""  # where prepared data sets are, a folder or gs:// bucket; "": a cache in the home folder
    config.data.split = "train"  # tensorflow-datasets' notation, e.g. "train[:90%]"
    config.data.image_size = 8  # pixels per side; other images are cropped to a square and resized
    config.data.channels = 1  # 1 gray | 3 colour | of arrays any number
    config.data.flip = False  # random left-right flips
    config.data.num_workers = 0  # processes that load images; 0: threads, enough for a few thousand images a second
    config.data.background = "white"  # for image_folder and huggingface: the colour behind what is transparent, e.g. "#ff8000"
    config.data.dtype = "uint8"  # uint8 | float32, for arrays of floats (latents): x itself, best near mean 0 and deviation 0.5

    # The noise levels that training draws: any schedule, e.g. "zero_terminal(scaled_linear)", or a table of T steps,
    # "discrete(linear, num_steps=1000)"; `noisesched plot --help` lists them. "recommended": cosine up to 64 pixels, above
    # that shifted by image size, e.g. "shifted(cosine, image_size=256)"; the workdir's config.json records which.
    config.schedule = "recommended"

    # How the loss of each level is weighted: eps | x | v | vlb | min_snr(gamma=5) | soft_min_snr(gamma=4) | debiased |
    # p2(k=1, gamma=1) | edm(sigma_data=0.5) | sigmoid(bias=2) | uncertain(v): any of them, divided by the loss that is learned to
    # be expected at each level. eps, x and v: the plain squared error of that quantity, whichever the network predicts.
    config.weighting = "v"
    config.noise_offset = 0.0  # offset noise: std of one normal number per channel, added to the noise of all its pixels

    # How the network is told the noise level.
    config.conditioning = ConfigDict()
    config.conditioning.kind = "log_snr"  # log_snr | sigma | timestep | none
    config.conditioning.table = ""  # for timestep: the table it counts in, e.g. "discrete(linear, num_steps=1000)"
    config.conditioning.translation = "nearest"  # for timestep: how a level becomes one, nearest | interpolated

    # The network. Level i of the UNet works at image_size / 2^i with width * multipliers[i] channels.
    config.model = ConfigDict()
    config.model.kind = "unet"  # unet | dit, a transformer | unet2d, of PyTorch's diffusers, which `interchange` reads
    config.model.prediction = "v"  # what it outputs: v | x | eps (not eps if the schedule ends at zero SNR)
    config.model.width = 16
    config.model.multipliers = (1, 2, 2)
    config.model.blocks = 1  # residual blocks per level; of dit: how many
    config.model.attention = ()  # the sizes, image_size / 2^i, at which blocks are followed by self-attention, e.g. (4,)
    config.model.heads = 4
    config.model.patch = 2  # of dit: pixels per side of a token, 1 | 2 | 4
    config.model.dropout = 0.0
    config.model.architecture = None  # of kind unet2d, which has it instead of those from width on: the fields of its config.json
    config.model.num_classes = 0  # 0: no labels; K: it is told one of K classes
    config.model.label_dropout = 0.1  # with classes: the fraction of images trained without their label
    config.model.dtype = "float32"  # of the computation, float32 | bfloat16; parameters stay float32

    # AdamW. Linear warm-up, then decay to 0 over the run.
    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.decay = "cosine"  # constant | linear | cosine
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0  # of the gradient norm; 0: no clipping

    config.training = ConfigDict()
    config.training.num_steps = 3600
    config.training.batch_size = 64  # over all devices
    config.training.accumulate = 1  # gradient accumulation: the parts a batch is split into, to save memory
    config.training.steps_per_dispatch = 1  # training steps per call to the device
    config.training.parallel = "pmap"  # pmap | jit (sharded batch) | fsdp (sharded state, too): the same numbers
    config.training.ema_decay = 0.995  # of the averaged parameters, which make the samples
    config.training.skip_nonfinite = 0  # updates that may be skipped, per run, for a loss or gradient not finite; 0: stop
    config.training.log_every = 100
    config.training.checkpoint_every = 1000
    config.training.keep_checkpoints = 2  # how many of the newest are kept
    config.training.keep_every = 0  # N: those at multiples of N steps are kept, too, for ever; 0: none
    config.training.keep_best = 0  # N: the N with the lowest held-out loss of the averaged parameters, too; 0: not measured
    config.training.best_split = "test"  # the held-out images for that, the first 1,024 of them; notation as in data.split

    # Grids of samples during training, always from the same noise.
    config.preview = ConfigDict()
    config.preview.every = 1000  # in steps; 0: never
    config.preview.num_images = 64
    config.preview.schedule = "trained"  # any schedule; "trained": the training schedule
    config.preview.steps = 25
    config.preview.method = "ddim"
    return config
