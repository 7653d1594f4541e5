"""The TFDS data set of screening samples, in a package folder of its own as TFDS wants it."""
