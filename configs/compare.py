"""The base comparison: every setting of `noisesched compare`, on one page. Other comparisons import it and state what differs.

    noisesched compare --config=configs/compare.py --config.workdirs="('runs/a', 'runs/b')" --out=comparisons/first
    noisesched report --compare=comparisons/first

Every run x schedule x sampler x number of calls x seed is one line of compare.jsonl. The same command goes on where it was
killed; asking for more schedules or seeds adds to what is there. Networks are trained first if `runs` describes some.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()

    # The networks: workdirs of runs that exist, "runs/x/seed0" and "runs/x/seed1" being seeds of one run x, ..
    config.workdirs = ()
    # .. your own networks, each "FILE.py:NAME" of what noisesched.wrap made there, and the images they were trained on: a config
    # file, an image folder or a prepared data set ..
    config.denoisers = ()
    config.data = ""
    # .. and configurations to be trained first, in OUT/runs/<name>/seed<n>: config.runs.name = digits.get_config()
    config.runs = ConfigDict()
    config.train_seeds = (0,)  # each of them is trained with these
    config.parameters = "ema"  # ema | params: averaged or raw parameters

    # What they are sampled with: every combination.
    # `noisesched plot --help` lists the schedules; "trained": the one that each network was trained with.
    config.schedules = ("linear", "cosine", "sigmoid", "karras", "flow")
    config.methods = ("ddim",)
    config.guidances = ("none",)  # for networks with classes, e.g. "none", "cfg(3)", "cfg(3, rescaled(0.7))"
    config.calls = (5, 10, 25, 50)  # at most so many network calls: a method with two calls a step takes half as many levels
    config.spacings = ("trailing",)  # any of trailing, leading, linspace
    config.seeds = (0,)  # of the noise; image i of a seed starts from the same noise in all rows

    # For networks that are told timesteps: how a level becomes one. nearest | interpolated, or raw: the steps that the training
    # schedule would have had, whatever the level is; the mistake of changing the schedule and forgetting the network.
    config.translations = ("nearest",)
    config.outside = "refuse"  # levels beyond the table: refuse | clamp (tell its nearest end; counted in the row)

    # What is measured, on how many images. Written metric(extractor): `noisesched evaluate --help` lists them.
    config.metrics = ("frechet(classifier)", "frechet(raw)", "brightness")
    config.num_images = 256
    config.reference = "train"  # split of the real images; two disjoint parts of num_images are taken, for the floor
    config.inception_weights = ""  # for (inception): the file of weights, .npz or .safetensors

    # Bits per dimension and the loss profile of every run, too.
    config.likelihood = "test"  # split of the held-out images; "": skip both
    config.likelihood_images = 0  # use only the first N; 0: all
    return config
