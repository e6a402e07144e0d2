"""How RSM learns on line, written again as one plain loop over streams and weights.

From docs/science/algorithm.md (sections 2 and 3) and the docstrings of the settings. The model itself (its predictions,
the errors of its layers, its states) is taken as it is: other oracles test that. All that is tested here is what a run
adds: who learns from what, at which rate, by which formula, and who hears what.
"""

import math

import torch
from torch.nn import functional as F


def rate(config, progress):
    """Return the share of a learning rate: linear warm-up, then half a cosine down to the final share."""
    if config.schedule == "constant":
        return 1.0
    if progress < config.warmup_share:
        return max(progress / config.warmup_share, 1e-3)
    rest = (progress - config.warmup_share) / (1 - config.warmup_share)
    return config.final_share + (1 - config.final_share) * (1 + math.cos(math.pi * rest)) / 2


def moved(changed, blur):
    """Return the length of a change ``[c, h, w]`` seen through a Gaussian that is cut at three deviations."""
    if blur > 0:
        reach = math.ceil(3 * blur)
        weight = {n: math.exp(-0.5 * (n / blur) ** 2) for n in range(-reach, reach + 1)}
        rows, columns = (
            changed.new_tensor([[weight.get(i - j, 0.0) / sum(weight.values()) for j in range(n)] for i in range(n)])
            for n in changed.shape[1:]
        )
        changed = rows @ changed @ columns.t()
    return (changed**2).sum() ** 0.5


class Adam:
    """Diederik Kingma, Jimmy Ba, 2015, for one tensor after the other."""

    def __init__(self, weights, betas=(0.9, 0.999), epsilon=1e-8):
        self.weights, self.betas, self.epsilon, self.steps = list(weights), betas, epsilon, 0
        self.means = [[torch.zeros_like(w), torch.zeros_like(w)] for w in self.weights]

    def step(self, gradients, learning_rate):
        self.steps += 1
        for weight, gradient, mean in zip(self.weights, gradients, self.means, strict=True):
            mean[0] = self.betas[0] * mean[0] + (1 - self.betas[0]) * gradient
            mean[1] = self.betas[1] * mean[1] + (1 - self.betas[1]) * gradient**2
            first, second = (m / (1 - beta**self.steps) for m, beta in zip(mean, self.betas, strict=True))
            weight.data -= learning_rate * first / (second.sqrt() + self.epsilon)


class Muon:
    """Keller Jordan, 2024: Nesterov's momentum, made orthogonal, for one kernel after the other."""

    def __init__(self, kernels):
        self.kernels, self.momenta = kernels, [torch.zeros_like(kernel) for kernel, _ in kernels]

    def step(self, gradients, learning_rate):
        for number, ((kernel, transposed), gradient) in enumerate(zip(self.kernels, gradients, strict=True)):
            self.momenta[number] = 0.95 * self.momenta[number] + 0.05 * gradient
            ahead = 0.05 * gradient + 0.95 * self.momenta[number]
            shaped = ahead.transpose(0, 1) if transposed else ahead
            x = matrix = shaped.reshape(len(shaped), -1)
            tall = matrix.shape[0] > matrix.shape[1]
            x = x.t() if tall else x
            x = x / (x.norm() + 1e-7)
            for _ in range(5):
                x = 3.4445 * x + (-4.7750 * (x @ x.t()) + 2.0315 * (x @ x.t()) @ (x @ x.t())) @ x
            x = (x.t() if tall else x).reshape(shaped.shape)
            factor = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
            kernel.data -= learning_rate * factor * (x.transpose(0, 1) if transposed else x)


def squared_error(a, b):
    return float((a.detach().double() - b.double()).square().sum())


class PlainOnline:
    """The model of a run and all that changes while it learns; ``judge`` is the discriminator or None."""

    def __init__(self, model, judge, learning, rectifying, batch, shape):
        self.model, self.judge, self.learning, self.rectifying = model, judge, learning, rectifying
        self.fresh = self.state = model.initial_state((batch, *shape))
        self.alone = [0] * batch
        self.layers = [Adam(layer.parameters(), learning.betas, learning.epsilon) for layer in model.stack.layers]
        is_kernel = {}
        for part in model.rectifier.modules():
            if isinstance(part, torch.nn.Conv2d | torch.nn.ConvTranspose2d) and part.kernel_size != (1, 1):
                is_kernel[id(part.weight)] = isinstance(part, torch.nn.ConvTranspose2d)
        weights = list(model.rectifier.parameters())
        self.others = Adam([w for w in weights if id(w) not in is_kernel])
        self.muon = Muon([(w, is_kernel[id(w)]) for w in weights if id(w) in is_kernel])

    def phases(self, progress):
        """Say whether the stack and whether the rectifier learns now, and how far through its phase each is."""
        until, begins = self.rectifying.stack_share, 1 - self.rectifying.share
        until = begins if until is None else until
        stack = progress / until if progress < until else None
        rectifier = (progress - begins) / (1 - begins) if progress >= begins else None
        return stack, rectifier

    def teach(self, frames, starts, progress):
        """Learn from one frame of each stream; return what a record is made of."""
        streams = range(len(frames))
        stack, rectifier = self.phases(progress)
        for i in streams:
            if starts[i]:
                self.state = replaced(self.state, self.fresh, i)
        learns = [not starts[i] and self.alone[i] == 0 for i in streams]
        prediction = self.model.predict_raw(self.state)
        losses = []
        if stack is not None:
            errors = self.model.losses(prediction, frames, torch.tensor(learns, device=frames.device))
            gradients = [
                torch.autograd.grad(error, optimiser.weights)
                for error, optimiser in zip(errors, self.layers, strict=True)
            ]
            rates = self.learning.learning_rates * len(self.layers)
            for optimiser, gradient, own in zip(self.layers, gradients, rates, strict=False):
                optimiser.step(gradient, own * rate(self.learning, stack))
            losses += [float(error.detach()) for error in errors]
        predicted, heard, alone = prediction.raw, [frames[i] for i in streams], list(self.alone)
        if rectifier is not None:
            last = self.model.last_frame(self.state)
            predicted, terms = self.teach_rectifier(prediction, frames, starts, rectifier, last)
            losses += terms
            for i in streams:
                heard[i], alone[i] = self.heard(i, len(frames), predicted[i], frames[i], bool(starts[i]), rectifier)
        scores = [squared_error(predicted[i], frames[i]) for i in streams if learns[i]]
        self.state = self.model.observe(torch.stack(heard), prediction, self.state)
        self.alone = alone
        return {
            "scored": len(scores),
            "error": sum(scores) / len(scores) if scores else 0.0,
            "losses": losses,
            "heard": torch.stack(heard),
        }

    def heard(self, stream, batch, own, frame, starts, progress):
        """Return what a stream hears, and for how many steps it has then heard itself; below 0 while it wakes up."""
        config, alone = self.rectifying, self.alone[stream]
        may_dream = stream < round(config.loop_share * batch) and progress >= config.loop_from and not starts
        if starts:
            return frame, 0
        if alone > 0:
            if may_dream and alone < config.loop_steps:
                return own, alone + 1
            return frame, -max(2, self.model.config.layers[0].input_frames)
        if alone < 0:
            return frame, alone + 1
        if may_dream and squared_error(own, frame) < config.loop_error:
            return own, 1
        return frame, 0

    def teach_rectifier(self, prediction, frames, starts, progress, last):
        """Return the rectified frames as they were before the step, and the losses.

        Where no stream teaches, the losses are 0 and the optimisers take a step along gradients of zero.
        """
        config, streams = self.rectifying, range(len(frames))
        made = self.model.rectify(prediction)
        awake = [i for i in streams if not starts[i] and self.alone[i] == 0]
        dreams = [i for i in streams if not starts[i] and self.alone[i] > 0]
        follows = sorted(awake + [i for i in dreams if squared_error(made[i], frames[i]) <= config.loop_error])
        mine, real, condition = made[follows], frames[follows], prediction.raw[follows].detach()
        noise = (config.noise_deviation * torch.randn_like(frames))[follows]  # drawn for all, whoever teaches
        error = adversarial = judged = 0 * made.sum() + 0 * self.judge(made, prediction.raw).sum()
        if follows:
            error = ((mine - real) ** 2).mean()
            adversarial = F.softplus(-self.judge(mine + noise, condition)).mean()
        motion = torch.zeros((), device=frames.device)
        if awake and dreams:
            world = torch.stack([moved(frames[i] - last[i], config.motion_blur) for i in awake]).mean()
            if world > 0:
                own = torch.stack([moved(made[i] - last[i], config.motion_blur) for i in dreams])
                motion = ((own / world - 1) ** 2).mean()
        total = error + config.adversarial_weight * adversarial + config.motion_weight * motion
        self.step_rectifier(total, progress)
        if follows:
            says_real = self.judge(real + noise, condition)
            says_mine = self.judge(mine.detach() + noise, condition)
            label = config.real_label
            judged = (label * F.softplus(-says_real) + (1 - label) * F.softplus(says_real)).mean()
            judged = judged + F.softplus(says_mine).mean()
        weights = list(self.judge.parameters())
        for weight, gradient in zip(weights, torch.autograd.grad(judged, weights), strict=True):
            weight.data -= config.discriminator_learning_rate * gradient
        return made.detach(), [float(loss.detach()) for loss in (error, adversarial, judged, motion)]

    def step_rectifier(self, total, progress):
        config = self.rectifying
        weights = [*self.others.weights, *(kernel for kernel, _ in self.muon.kernels)]
        gradients = torch.autograd.grad(total, weights)
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        if config.gradient_norm is not None and norm > config.gradient_norm:
            gradients = [gradient * config.gradient_norm / norm for gradient in gradients]
        factor, count = rate(config, progress), len(self.others.weights)
        self.others.step(gradients[:count], config.learning_rate * factor)
        self.muon.step(gradients[count:], config.matrix_learning_rate * factor)


def replaced(state, fresh, stream):
    """Return a nested state whose entries of one stream are fresh."""
    if state is None:
        return None
    if isinstance(state, torch.Tensor):
        new = state.clone()
        new[stream] = fresh[stream]
        return new
    parts = [replaced(own, other, stream) for own, other in zip(state, fresh, strict=True)]
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
