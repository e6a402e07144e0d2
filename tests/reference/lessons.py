"""Hands a learner what it learns from, as the training loop and the learner do."""


def teach(learner, stream, progress=0.5):
    return learner.teach([next(stream) for _ in range(learner.batches_per_update)], progress)


def follow(learning, losses, prediction, progress=0.0):
    """Let the layers of a stack take one step on their errors, by `LocalLearning`."""
    learning.set_progress(progress)
    learning.find_gradients(losses)
    learning.step(prediction)
