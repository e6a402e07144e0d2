"""Hands a learner its next batches of a stream, as the training loop does."""


def teach(learner, stream, progress=0.5):
    return learner.teach([next(stream) for _ in range(learner.batches_per_update)], progress)
