"""The data sets that come with the trainer. Every migration registers them, unless an operator has one of that name."""

from resforge.jobs import DatasetInfo

BUILTIN: tuple[DatasetInfo, ...] = (
    DatasetInfo(
        name="digits",
        format="digits",
        channels=1,
        classes=10,
        image_size=8,
        train_images=1437,
        test_images=360,
        description="Handwritten digits of 8x8 pixels, which scikit-learn brings along.",
    ),
    DatasetInfo(
        name="synthetic",
        format="synthetic",
        channels=3,
        classes=10,
        image_size=32,
        description="Images made from a seed, for measuring speed and for tests.",
    ),
)
