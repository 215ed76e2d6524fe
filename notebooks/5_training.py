# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. Training 训练
#
# The study note behind this project ends in a training loop of three steps: forward, backward, gradients and update.
# This notebook runs it on handwritten digits, once with the gradients written by hand and once with `jax.grad`, and
# watches what the regularisation term does to the weights.
#
# 本项目所依据的学习笔记，最后总结的训练过程只有三步：前向传播、反向传播、计算梯度并更新参数。本文在手写数字上运行这三步：一次用手写的梯度，一次用 `jax.grad`，并观察正则化项对权重矩阵的影响。
#
# You will have seen: one iteration written out line by line; two runs whose curves agree to the last digits; and
# weights that shrink under $\lambda$, some of them by a law that is known in advance.
#
# 读完你会看到：逐行写出的一次迭代；两次训练的曲线直到最后几位数字都一致；权重随 $\lambda$ 增大而缩小，其中一部分权重的衰减可以事先精确算出。

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import manual_backprop as mb
import reference
from reference import xla
from reference.catalogue import data

jax.config.update("jax_enable_x64", True)
plt.style.use("pictures.mplstyle")

# %% [markdown]
# ## The data 数据
#
# 1797 images of 8 by 8 pixels, scaled to zero mean; 1400 to train on, 397 held out.
#
# 共 1797 张 8×8 的图像，已减去均值；其中 1400 张用于训练，397 张留作测试。

# %%
digits, quick = data.load("digits"), xla.quick()  # quick: options to compile fast; the runs are short
order = np.random.default_rng(0).permutation(len(digits.y))
x, y = jnp.asarray(digits.x[order[:1400]]), jnp.asarray(digits.y[order[:1400]])
x_held, y_held = jnp.asarray(digits.x[order[1400:]]), jnp.asarray(digits.y[order[1400:]])

row = np.hstack([np.pad(image.reshape(8, 8), 1) for image in data.raw("digits").x[order[:12]]])
plt.figure(figsize=(8, 0.8))
plt.imshow(row, cmap="gray_r"), plt.axis("off")
plt.show()
print("labels:", *digits.y[order[:12]])

# %% [markdown]
# Two hidden layers of 32 neurons, softmax cross-entropy, and the regularisation term (J2) with $\lambda = 10^{-3}$:
#
# $$J = \frac1N \sum_n \ell(o_n, y_n) +
# \frac{\lambda}{2} \left( \|W^{(1)}\|_F^2 + \|W^{(2)}\|_F^2 + \|W^{(3)}\|_F^2 \right).$$
#
# 网络有两个隐藏层，每层 32 个神经元；目标函数 (J3) 是 softmax 交叉熵损失加上正则化项 (J2)，$\lambda = 10^{-3}$。

# %%
LAMBDA, RATE, BATCH, EPOCHS = 1e-3, 0.2, 50, 20
net = mb.mlp((64, 32, 32, 10), activation="tanh")
objective = mb.Objective(net, mb.softmax_cross_entropy, mb.Frobenius(LAMBDA))
optimizer = optax.sgd(RATE)  # any optax transformation would do; plain SGD has laws that we can check
start = jax.jit(net.init, compiler_options=quick)(jax.random.key(0))
print(f"{net}: {sum(leaf.size for leaf in jax.tree.leaves(start))} parameters")

# %% [markdown]
# ## One iteration, in three steps 分三步做一次迭代
#
# Nothing is hidden here: the trace holds every $z^{(l)}$ and $a^{(l)}$, the deltas every $\delta^{(l)}$.
#
# 这里没有任何隐藏：`trace` 保存每层的净输入和活性值，`deltas` 保存每层的误差项。

# %%
images, labels = x[:BATCH], y[:BATCH]

output, trace = mb.forward(net, start, images)  # step 1: (F1) (F2), layer by layer
d_output = objective.loss.derivative(output, labels)  # dl/do = softmax(o) - y
_, deltas = mb.backward(net, start, trace, d_output)  # step 2: (B1) (B2), last layer first
gradients = mb.gradients(net, trace, deltas)  # step 3: (B3) (B4), means over the batch
gradients = tuple(mb.Affine(g.W + LAMBDA * p.W, g.b) for g, p in zip(gradients, start, strict=True))  # (B6)
after = jax.tree.map(lambda p, g: p - RATE * g, start, gradients)  # the update (U1)

before, now = objective(start, images, labels), objective(after, images, labels)
print(f"J on this batch: {before:.4f} before, {now:.4f} after")
assert now < before

# %% [markdown]
# `mb.training.make_step` is these lines, compiled, with the optimizer's update in the place of ours. It gives the same
# parameters.
#
# `mb.training.make_step` 把这几行编译成一个函数，更新一步则交给优化器，得到的参数与上面相同。

# %%
step = mb.training.make_step(objective, optimizer)
copy = jax.tree.map(jnp.copy, start)  # the step takes over the memory of what it is given
stepped, _, J = step(copy, optimizer.init(copy), images, labels)
difference = max(jax.tree.leaves(jax.tree.map(lambda a, b: float(abs(a - b).max()), stepped, after)))
print(f"J before the update {J:.4f}; largest difference of the parameters after it {difference:.1e}")
assert difference < 1e-15

# %% [markdown]
# ## Twenty epochs 训练二十轮
#
# `make_epoch` repeats that over all examples in random order. After every epoch we ask how many images are read
# rightly.
#
# `make_epoch` 以随机顺序遍历全部样本；每轮之后统计训练集和测试集上的正确率。

# %%
accuracy = jax.jit(lambda params, x, y: (mb.forward(net, params, x)[0].argmax(axis=1) == y).mean())


def train(value_and_grad):
    """(parameters, J of every batch before its update, accuracies after every epoch) by gradients from there."""
    epoch = mb.training.make_epoch(objective, optimizer, BATCH, value_and_grad=value_and_grad)
    params, state, values, shares = jax.tree.map(jnp.copy, start), optimizer.init(start), [], []
    for number in range(EPOCHS):
        params, state, J = epoch(params, state, jax.random.key(number), x, y)
        values.append(J)
        shares.append((accuracy(params, x, y), accuracy(params, x_held, y_held)))
    return params, np.concatenate(values), np.array(shares)


# %%
params, ours, shares = train(mb.value_and_grad)

figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
left.semilogy(np.arange(len(ours)) / 28, ours, lw=0.7, label="every batch")
left.semilogy(np.arange(EPOCHS) + 0.5, ours.reshape(EPOCHS, 28).mean(axis=1), label="mean of an epoch")
left.set(xlabel="epoch", ylabel="J", title="objective"), left.legend()
right.plot(np.arange(EPOCHS) + 1, 100 * shares, label=["training", "held out"])
right.set(xlabel="epoch", ylabel="read rightly, %", title="accuracy"), right.legend()
plt.show()
print(f"after {EPOCHS} epochs {shares[-1, 0]:.1%} of the training images and {shares[-1, 1]:.1%} of the held-out ones")
assert shares[-1, 1] > 0.97 and ours[-28:].mean() < 0.2 * ours[0]

# %% [markdown]
# ## The same by jax.grad 用 jax.grad 再训练一次
#
# Same start, same order of images, but the gradient comes from `jax.grad` of an objective written separately. If a hand
# made gradient were off by a little, training would carry the error from step to step. So a third run has a planted
# fault, to show what such an error looks like: the gradient of $W^{(1)}$ is too large by one part in a billion.
#
# 起点和样本顺序都不变，只是梯度改由 `jax.grad` 对另行编写的目标函数计算。如果手写的梯度略有偏差，误差会一步步累积下去。第三次训练故意放入一个错误：$W^{(1)}$ 的梯度放大十亿分之一，看看这么小的错误在曲线上是什么样子。


# %%
def slightly_wrong(objective):
    """mb.value_and_grad with the first layer's dW too large by 1e-9 of itself."""
    gradient = mb.value_and_grad(objective)

    def value_and_gradient(*arguments, **given):
        J, (first, *others) = gradient(*arguments, **given)
        return J, (mb.Affine(first.W * (1 + 1e-9), first.b), *others)

    return value_and_gradient


by_jax, theirs, their_shares = train(reference.value_and_grad)
_, wrong, wrong_shares = train(slightly_wrong)

# %%
for name, curve in ("by hand", ours), ("by hand, dW too large by 1e-9", wrong):
    plt.semilogy(np.maximum(np.abs(curve - theirs), 1e-18), ".", ms=4, label=name)
plt.xlabel("training step"), plt.ylabel(r"$|J - J_{\mathrm{jax.grad}}|$, 0 shown as $10^{-18}$")
plt.ylim(1e-19, 1e-6), plt.legend(loc="upper right")
plt.show()
gap, gap_wrong = np.abs(ours - theirs).max(), np.abs(wrong - theirs).max()
print(f"largest difference of J in {len(ours)} steps: {gap:.1e} by hand, {gap_wrong:.1e} with the fault")
assert gap < 1e-13 and gap_wrong > 1e3 * gap
assert np.array_equal(shares, their_shares)

# %% [markdown]
# The two curves are one curve, to rounding, over 560 steps, and every accuracy is the same. The planted fault stands
# out by orders of magnitude in $J$, although it too leaves the accuracies as they are: **accuracy says little about a
# gradient**.
#
# 560 步之后，两条曲线仍然只差舍入误差，每一轮的正确率也完全相同。放入的错误在 $J$ 上高出好几个数量级，正确率却没有变化：**正确率几乎不能说明梯度是否正确**。

# %%
print(f"accuracies of the faulty run that differ: {np.count_nonzero(wrong_shares != shares)} of {shares.size}")
assert np.array_equal(wrong_shares, shares)

# %% [markdown]
# ## What the regularisation term does 正则化项的作用
#
# (B6) adds $\lambda W^{(l)}$ to the gradient: every step takes a share $\eta\lambda$ of the weights away, whatever the
# data say. Train with nine values of $\lambda$ at once; `lam=` may be traced, so `vmap` runs over it.
#
# 由 (B6)，梯度里多了一项 $\lambda W^{(l)}$：无论数据如何，每一步都按比例 $\eta\lambda$ 缩小权重。下面用 `vmap` 同时训练九个不同的 $\lambda$。


# %%
def trained(lam):
    """The parameters after all epochs with that lambda."""
    with_lam = lambda objective: lambda *at, **given: mb.value_and_grad(objective)(*at, lam=lam, **given)  # noqa: E731
    epoch = mb.training.make_epoch(objective, optimizer, BATCH, value_and_grad=with_lam)

    def one(carry, key):
        return epoch(*carry, key, x, y)[:2], None

    keys = jax.random.split(jax.random.key(1), EPOCHS)
    return jax.lax.scan(one, (start, optimizer.init(start)), keys)[0][0]


lambdas = jnp.logspace(-4, 0, 9)
networks = jax.jit(jax.vmap(trained), compiler_options=quick)(lambdas)

# %%
norms = np.array([np.linalg.norm(layer.W, axis=(1, 2)) for layer in networks])
read = jax.vmap(accuracy, (0, None, None))
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
left.loglog(lambdas, norms.T, ".-", label=[rf"$\|W^{{({layer})}}\|_F$" for layer in (1, 2, 3)])
left.set(xlabel=r"$\lambda$", title="norms of the weights", ylim=(1e-2, 20)), left.legend(loc="lower left")
right.semilogx(lambdas, 100 * (seen := read(networks, x, y)), ".-", label="training")
right.semilogx(lambdas, 100 * (held := read(networks, x_held, y_held)), ".-", label="held out")
right.set(xlabel=r"$\lambda$", ylabel="read rightly, %", title="accuracy"), right.legend(loc="lower left")
plt.show()

# %% [markdown]
# All norms fall, slowly at first, and somewhere between $\lambda = 0.1$ and $0.32$ the penalty wins altogether:
# training ends at $W = 0$, the network gives every image the same answer, and one in ten is right by chance. On these
# easy images a little regularisation neither helps nor hurts much: training and held-out accuracy come closer together,
# by way of the first falling.
#
# 各层权重矩阵的范数起初缓慢下降；$\lambda$ 增大到 0.1 与 0.32 之间的某处，正则化项完全占上风，训练的终点是 $W=0$，网络对所有图像给出同样的回答。在这组简单的数据上，少量正则化几乎没有影响：训练集与测试集的正确率靠拢，只是因为前者下降了。

# %%
print("lambda   ", *(f"{lam:8.4f}" for lam in lambdas))
print("training ", *(f"{share:8.1%}" for share in seen))
print("held out ", *(f"{share:8.1%}" for share in held))
assert np.all(np.diff(norms, axis=1) < 0)  # in every layer, from each lambda to the next
assert np.all(np.abs(held[:5] - held[0]) < 0.01) and held[-1] < 0.15
assert np.all(norms[:, 6] > 1) and np.all(norms[:, 7] < 0.01)  # lambda = 0.1, 0.32

# %% [markdown]
# ## A law that is known in advance 可以事先算出的衰减
#
# Three of the 64 pixels are the same in every training image; scaled, they are 0. By (B4) the weights that hang on them
# get no gradient from the loss, only $\lambda W$ from (B6). So each of these weights must shrink by $1 - \eta\lambda$
# at every step, and after $t$ steps
#
# $$w_t = (1 - \eta\lambda)^t \, w_0 .$$
#
# 64 个像素中，有三个在所有训练图像中都相同，减去均值后恒为 0。由 (B4)，与它们相连的权重从损失得不到梯度，只剩 (B6) 的 $\lambda W$，因此 $t$ 步之后必有 $w_t=(1-\eta\lambda)^t w_0$。

# %%
dark = np.asarray(np.ptp(x, axis=0) == 0)
left_over = np.asarray(networks[0].W[:, :, dark] / start[0].W[:, dark])  # w_t / w_0: lambda, neuron, pixel
law = (1 - RATE * np.asarray(lambdas)) ** len(ours)

plt.loglog(lambdas, left_over[:, :, 0], ".", color="C0", ms=8)
plt.loglog(
    grid := np.logspace(-4, 0, 200), (1 - RATE * grid) ** 560, color="C1", label=r"$(1 - \eta\lambda)^t$, $t = 560$"
)
plt.xlabel(r"$\lambda$"), plt.ylabel("weights of a dark pixel, after / before"), plt.legend()
plt.show()
error = np.abs(left_over / law[:, None, None] - 1).max()
print(f"{left_over[0].size} weights, from {law.max():.3f} down to {law.min():.0e}: the law holds to {error:.1e}")
assert dark.sum() == 3 and law.min() < 1e-54 and error < 1e-11

# %% [markdown]
# The law holds over 54 orders of magnitude. A penalty of $\lambda/(2N)$, a missing factor, or weights left out of the
# sum would all show here at once.
#
# 这条规律跨越 54 个数量级仍然成立。若正则化项误写成 $\lambda/(2N)$、漏掉系数或漏掉某些权重，在这里会立刻暴露。
#
# ## The check 验证
#
# At the trained parameters the gradients of loss and regularisation term nearly cancel, so rounding weighs most. The
# harness compares every $z$, $a$, $\delta$ and gradient there, equation by equation and end to end.
#
# 训练结束时，损失与正则化项的梯度几乎相互抵消，舍入误差的影响最大。验证程序就在这里逐个公式、逐个数值地比较。

# %%
report = reference.check(objective, params, x[:32], y[:32], compiler_options=quick)
print(report.summary())
assert report.passed
