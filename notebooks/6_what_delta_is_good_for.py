# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6. What delta is good for 误差项还能做什么
#
# For training, the error term $\delta^{(l)}$ (C5) is a step on the way to the gradient. Kept as a value, it answers
# other questions: does the signal reach the first layer, which example pulls hardest, which label is wrong, and would
# the network learn if $\delta$ travelled another way?
#
# 训练时，误差项 $\delta^{(l)}$ 只是通往梯度的中间量。把它保留下来，还能回答别的问题：信号能否传到第一层？哪个样本的影响最大？哪个标签是错的？如果误差项换一条路传播，网络还能学习吗？
#
# You will have seen: vanishing and exploding error terms and the rate that theory gives them; every example's gradient
# norm from one sweep; mislabelled digits found by it; and feedback alignment, where the network turns towards a random
# feedback.
#
# 读完你会看到：误差项的消失与爆炸，及其理论速率；一次反向传播得到每个样本的梯度范数；用它找出标错的数字；以及反馈对齐：网络自己转向随机的反馈矩阵。

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

# %%
digits, quick = data.raw("digits"), xla.quick()  # quick: options to compile fast; the runs are short
order = np.random.default_rng(5).permutation(len(digits.y))
images, labels = digits.x[order] / 16, digits.y[order]  # pixels between 0 and 1
x, y = jnp.asarray(images[:1400]), jnp.asarray(labels[:1400])
x_held, y_held = jnp.asarray(images[1400:]), jnp.asarray(labels[1400:])


def fast(function, static=()):
    """`function` compiled, quickly."""
    return jax.jit(function, static_argnums=static, compiler_options=quick)


# %% [markdown]
# ## Does the signal arrive? 信号传得到吗？
#
# (B2) multiplies $\delta$ by $W^\top$ and by $f'(z)$, once for every layer on its way down. Let the weights of layer
# $l+1$ be drawn independently with mean 0 and variance $v_{l+1}$. Then every entry $\sum_i w_{ij} \delta_i^{(l+1)}$ of
# $W^\top \delta$ has mean square $v_{l+1} \|\delta^{(l+1)}\|^2$; layer $l$ has $M_l$ such entries, and each is
# multiplied by its slope. With an overline for the mean over neurons and examples:
#
# $$\|\delta^{(l)}\| \approx g_l \, \|\delta^{(l+1)}\|, \qquad
# g_l^2 = M_l \, v_{l+1} \; \overline{f_l'(z^{(l)})^2} .$$
#
# Twenty layers make $g^{19}$ of it: a little below 1 it vanishes, a little above it explodes. The usual draws choose
# the variance to keep signals level: He's is $v_l = 2 / M_{l-1}$, Glorot's $v_l = 2 / (M_{l-1} + M_l)$. Below, six
# networks of 20 layers with 128 neurons, with one or the other draw, some of them multiplied by a factor; `mb.diagnose`
# reads the norms off.
#
# 误差项每向下传一层，就乘一次 $W^\top$ 和 $f'(z)$。设第 $l+1$ 层的权重独立抽取，均值为 0，方差为 $v_{l+1}$。$W^\top\delta$ 的每个元素 $\sum_i w_{ij}\delta_i^{(l+1)}$ 的均方是 $v_{l+1}\|\delta^{(l+1)}\|^2$；第 $l$ 层共有 $M_l$ 个这样的元素，每个再乘以该处的导数。于是范数平均乘上因子 $g_l$，定义如上式，上划线表示对神经元和样本取平均。二十层就是 $g$ 的十九次方：略小于 1 就消失，略大于 1 就爆炸。常用的初始化通过选取方差来保持信号的大小：He 初始化取 $v_l=2/M_{l-1}$，Glorot 初始化取 $v_l=2/(M_{l-1}+M_l)$。下面是六个 20 层、每层 128 个神经元的网络，有的还把权重再放大；范数由 `mb.diagnose` 读出。


# %%
def deep(activation, initializer, gain, layers=20, M=128):
    """(`mb.diagnose` of a network whose weights are `gain` times what the initializer draws, g of every layer)."""
    first, last = mb.Dense(64, M, activation, initializer), mb.Dense(M, 10, "identity", initializer)
    net = mb.Serial((first, mb.Repeat(mb.Dense(M, M, activation, initializer), layers - 2), last))
    params = jax.tree.map(lambda leaf: gain * leaf, net.init(jax.random.key(0)))
    step = mb.backprop(mb.Objective(net, mb.softmax_cross_entropy), params, x[:64], y[:64])

    slopes = [jnp.mean(first.f.df(at.z, at.a) ** 2, axis=(-2, -1)) for at in step.trace]
    variances = [jnp.mean(p.W**2, axis=(-2, -1)) for p in params]
    g = jnp.sqrt(M * jnp.hstack(variances)[1:] * jnp.hstack(slopes)[:-1])
    return mb.diagnose(net, step.trace, step.deltas), g


# %%
kinds = {
    "relu, He x 1.5": ("relu", "he", 1.5),
    "tanh, Glorot x 2": ("tanh", "glorot", 2.0),
    "relu, He": ("relu", "he", 1.0),
    "tanh, Glorot": ("tanh", "glorot", 1.0),
    "relu, Glorot": ("relu", "glorot", 1.0),
    "sigmoid, Glorot": ("sigmoid", "glorot", 1.0),
}
health = {name: fast(deep, (0, 1, 2))(*kind) for name, kind in kinds.items()}
norms = {name: np.hstack([layer.delta.norm for layer in layers]) for name, (layers, _) in health.items()}
theory = {name: norms[name][-1] * np.cumprod(np.append(g, 1)[::-1])[::-1] for name, (_, g) in health.items()}

# %%
depth = np.arange(20) + 1
plt.figure(figsize=(7.2, 4))
for name, norm in norms.items():
    (dots,) = plt.semilogy(depth, norm, ".", ms=8, label=name)
    plt.semilogy(depth, theory[name], lw=1, color=dots.get_color())
plt.xlabel("layer l"), plt.xticks(depth), plt.ylabel(r"$\|\delta^{(l)}\|$")
plt.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="dots measured,\nlines theory")
plt.show()

# %% [markdown]
# Read it from right to left, as $\delta$ travels. He's weights for relu are made for $g = 1$ and keep its size;
# Glorot's for tanh nearly do. Sigmoid loses a factor of four a layer, since its $f' \le 1/4$: the first layers of such
# a network hear nothing. Glorot's weights give relu $g = 1/\sqrt2$, because half of its slopes are 0; and He's weights,
# 1.5 times as large, explode at just that rate.
#
# 从右往左看，这是误差项传播的方向。为 relu 设计的 He 初始化（$g=1$）保持大小不变，tanh 配 Glorot 也差不多；sigmoid 的导数不超过 1/4，每层缩小到四分之一；relu 配 Glorot 初始化时 $g=1/\sqrt2$，因为一半的导数是 0；He 初始化放大 1.5 倍，就以每层 1.5 倍爆炸。
#
# The same sweep says more. Here is the report of relu with Glorot's weights, layer by layer: half of the activations
# are 0, and $z$ and $a$ shrink on their way up just as $\delta$ does on its way down. (`[0]` and `[2]` are the first
# and last layer, `[1][k]` the layers between, the blocks of `mb.Repeat`. `satur.` is the share of entries whose slope
# is almost 0, `dead` the share of neurons for which it is so in every example: nothing passes back through them.)
#
# 同一次传播还能说明更多。下面是 relu 配 Glorot 初始化的逐层报告：约一半的活性值为 0；$z$ 和 $a$ 在向上传播的途中逐层缩小，$\delta$ 在向下传播的途中同样逐层缩小。（`[0]` 和 `[2]` 是第一层和最后一层，`[1][k]` 是中间各层，即 `mb.Repeat` 的第 $k$ 块，从 0 数起。`satur.` 是导数几乎为 0 的元素所占的比例，`dead` 是对所有样本都如此的神经元的比例：误差无法从它们那里传回。）

# %%
known = {"relu, He x 1.5": 1.5, "relu, He": 1.0, "relu, Glorot": 0.5**0.5, "sigmoid, Glorot": 0.25}
for name, g in known.items():
    rate = (norms[name][0] / norms[name][-2]) ** (1 / 18)
    print(f"{name:16} {rate:.3f} a layer, expected {g:.3f}")
    assert abs(rate / g - 1) < 0.06
assert all(np.all(np.abs(np.log(norms[name] / theory[name])) < 0.3) for name in kinds)
assert norms["sigmoid, Glorot"][0] < 1e-10 and norms["relu, He x 1.5"][0] > 1e3
print(mb.diagnosis.table(health["relu, Glorot"][0]))
assert np.all(np.abs(health["relu, Glorot"][0][1].a.zeros - 0.5) < 0.1)

# %% [markdown]
# ## Every example's gradient norm, from one sweep 一次反向传播得到每个样本的梯度范数
#
# For a dense layer the gradient of one example is an outer product, $\delta_n a_n^\top$ (B4), and the norm of an outer
# product is a product of norms. With the bias,
#
# $$\Big\|\frac{\partial L_n}{\partial \theta}\Big\|^2
# = \sum_l \|\delta_n^{(l)}\|^2 \left( \|a_n^{(l-1)}\|^2 + 1 \right).$$
#
# ($L_n$ is the loss of example $n$, $\theta$ stands for all parameters, and the 1 is the bias's part.) No gradient is
# formed. `jax.grad` has to run for every example, by `vmap`, and holds a whole gradient for each.
#
# 全连接层中，单个样本的梯度是外积 $\delta_n a_n^\top$ (B4)，外积的范数等于范数的乘积；式中的 1 来自偏置，$L_n$ 是第 $n$ 个样本的损失，$\theta$ 代表全部参数。因此无需算出任何一个样本的梯度；而 `jax.grad` 要用 `vmap` 对每个样本各算一次，并保存每个样本的整个梯度。

# %%
NET = mb.mlp((64, 100, 100, 10), activation="tanh")
OBJECTIVE = mb.Objective(NET, mb.softmax_cross_entropy)


def squared_norms(params, x, y):
    """||dL_n/dparams||^2 of every example."""
    step = mb.backprop(OBJECTIVE, params, x, y)
    return mb.squared_norms(NET, step.trace, step.deltas)


def one_by_one(params, x, y):
    """The same by vmap of jax.grad."""
    gradients = reference.per_example_gradients(OBJECTIVE, params, x, y)
    return sum(jnp.sum(leaf**2, axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(gradients))


# %%
start = fast(NET.init)(jax.random.key(1))
ours, theirs = fast(squared_norms)(start, x[:200], y[:200]), fast(one_by_one)(start, x[:200], y[:200])
error = np.abs(ours / theirs - 1).max()
print(f"norms from {np.sqrt(ours.min()):.2f} to {np.sqrt(ours.max()):.2f}; largest relative difference {error:.1e}")
assert error < 1e-13

# %% [markdown]
# ## Which labels are wrong? 哪些标签是错的？
#
# Give a tenth of the training images a wrong label and train for five epochs. An image whose label contradicts all
# others keeps pulling at the weights: its gradient stays large. Its squared norm, summed over the epochs, is its
# *self-influence* (TracIn, Pruthi et al. 2020, arXiv:2002.08484), and we rank the images by it. Only the labels that
# were given are used; the true ones are not looked at.
#
# 把十分之一训练图像的标签改错，训练五轮。标签与其他样本矛盾的图像会一直拉扯权重，梯度始终很大。把每轮的梯度范数平方相加，就是它的“自影响”（TracIn，Pruthi 等 2020，arXiv:2002.08484），按它从大到小排序。排序只用到给定的标签，不看真实的标签。

# %%
random = np.random.default_rng(0)
flipped = random.permutation(1400) < 140
given = jnp.asarray(np.where(flipped, (np.asarray(y) + random.integers(1, 10, 1400)) % 10, y))

epoch = mb.training.make_epoch(OBJECTIVE, optax.sgd(0.1), 50)
params, state, influence = jax.tree.map(jnp.copy, start), optax.sgd(0.1).init(start), 0.0
for number in range(5):
    params, state, _ = epoch(params, state, jax.random.key(number), x, given)
    influence = influence + np.asarray(fast(squared_norms)(params, x, given))
untrained = np.asarray(fast(squared_norms)(start, x, given))

# %%
top = np.argsort(-influence)
area, chance = ((scores[flipped][:, None] > scores[~flipped]).mean() for scores in (influence, untrained))
print(f"a wrong label ranks above a right one in {area:.1%} of all pairs; by an untrained network in {chance:.0%}")
print(
    f"the first 140 are wrong in {flipped[top[:140]].mean():.0%}, the first 280 hold {flipped[top[:280]].sum()} of 140"
)
assert area > 0.95 and 0.3 < chance < 0.7 and flipped[top[:140]].mean() > 0.8

bins = np.logspace(np.log10(influence.min()), np.log10(influence.max()), 40)
plt.hist(influence[~flipped], bins, alpha=0.7, label="right label")
plt.hist(influence[flipped], bins, alpha=0.7, label="wrong label")
plt.xscale("log"), plt.yscale("log"), plt.xlabel("self-influence"), plt.ylabel("images"), plt.legend()
plt.show()

# %% [markdown]
# Now look at the images. Above, the eight at the top of the ranking, with the label given and the true one. Below, the
# eight that rank highest among those whose label we left alone: no mistakes of ours, but images that the network found
# hard.
#
# 再看图像。上排是排名最靠前的八张，标题是给定的标签和真实的标签；下排是标签未被改动的图像中排名最靠前的八张：标签没有改错，只是网络觉得难认。

# %%
figure, axes = plt.subplots(2, 8, figsize=(8, 2.6))
unflipped = top[~flipped[top]]
for axis, n in zip(axes.flat, (*top[:8], *unflipped[:8]), strict=True):
    axis.imshow(images[n].reshape(8, 8), cmap="gray_r"), axis.axis("off")
    axis.set_title(f"{given[n]}, is {y[n]}" if flipped[n] else f"{given[n]}", color="C1" if flipped[n] else "black")
plt.show()
assert flipped[top[:8]].all()

# %% [markdown]
# ## Another way down 换一条路往下传
#
# The brain has no $W^\top$ to send errors through. *Feedback alignment* (Lillicrap et al. 2016,
# doi:10.1038/ncomms13276) puts fixed random numbers $B$ in its place:
# $\delta^{(l)} = f_l'(z^{(l)}) \odot (B^\top \delta^{(l+1)})$. In general that is the gradient of no function, and yet
# the network learns. Why? Measure the angle between this $\delta$ and backpropagation's while it does, averaged over
# examples. (An example whose $\delta$ is exactly 0 has no direction and no angle; `nanmean` leaves it out of the mean.)
# The control draws $B$ anew at every step.
#
# 大脑里没有可以回传误差的 $W^\top$。**反馈对齐**（Lillicrap 等 2016）用固定的随机矩阵 $B^\top$ 代替 $W^\top$，由此得到的一般不是任何函数的梯度，网络却学得会。为什么？训练过程中测量它与真正误差项的夹角，对样本取平均。（如果某个样本的误差项恰好为 0，就没有方向，也没有夹角，`nanmean` 取平均时把它略去。）对照组每一步都重新抽取 $B$。


# %%
def feedback(key):
    """B for every layer, of deviation 0.3."""
    return tuple(mb.Affine(p.W * (0.3 / jnp.std(p.W)), p.b) for p in NET.init(key))


def angles(params, B):
    """Degrees between the two deltas on held-out images: the mean over examples, for both hidden layers."""
    by_rule = mb.backprop(OBJECTIVE, params, x_held, y_held, rule=mb.rules.FeedbackAlignment(B))
    true = mb.backprop(OBJECTIVE, params, x_held, y_held)
    apart = mb.angle(by_rule.deltas[:-1], true.deltas[:-1])
    return jnp.stack([jnp.nanmean(layer) for layer in apart])


# %%
def learn(fresh, key, epochs=15):
    """(parameters, angles before every epoch) with B fixed, or with fresh=1 drawn anew at every step."""
    B_at = lambda n: feedback(jax.random.fold_in(key, n * fresh))  # noqa: E731

    def one(carry, rows):
        params, n = carry
        by_rule = mb.backprop(OBJECTIVE, params, x[rows], y[rows], rule=mb.rules.FeedbackAlignment(B_at(n)))
        return (jax.tree.map(lambda p, g: p - 0.1 * g, params, by_rule.gradients), n + 1), None

    def epoch(carry, rows):
        return jax.lax.scan(one, carry, rows)[0], angles(carry[0], B_at(carry[1]))

    orders = [random.permutation(1400).reshape(28, 50) for _ in range(epochs)]
    (params, _), degrees = jax.lax.scan(epoch, (start, 0), jnp.array(orders))
    return params, degrees


# %%
run = fast(learn)
(fixed, degrees), (control, degrees_of_control) = run(0, jax.random.key(3)), run(1, jax.random.key(3))

plt.plot(degrees, label=["layer 1, B fixed", "layer 2, B fixed"])
plt.gca().set_prop_cycle(None)
plt.plot(degrees_of_control, "--", label=["layer 1, B drawn anew", "layer 2, B drawn anew"])
plt.axhline(90, color="C6", lw=0.8), plt.ylim(30, 105)
plt.xlabel("epoch"), plt.ylabel("degrees to backpropagation's $\\delta$"), plt.legend(loc="lower left", ncols=2)
plt.show()

# %%
accuracy = fast(lambda params: (mb.forward(NET, params, x_held)[0].argmax(axis=1) == y_held).mean())
print(f"held-out images read rightly: B fixed {accuracy(fixed):.1%}, B drawn anew {accuracy(control):.1%}")
print("degrees at the start and at the end:", degrees[0].round(1), degrees[-1].round(1))
print("B drawn anew, mean over epochs:", degrees_of_control.mean(axis=0).round(1))
assert np.all(degrees[0] > 80) and np.all(degrees[-1] < 65)
assert np.all(np.abs(degrees_of_control - 90) < 12) and np.all(np.abs(degrees_of_control.mean(axis=0) - 90) < 4)
assert accuracy(fixed) > 0.9 and accuracy(control) < 0.8

# %% [markdown]
# At the start $B$ has nothing to do with $W$, and the angle is 90 degrees, as between any two random directions in many
# dimensions. Then it falls: the updates that $B$ sends write $B$ into $W$, and $W^\top$ comes to point as $B^\top$
# does, more and more. A feedback that changes all the time gives $W$ nothing to turn to: its angle stays near 90, and
# it learns far less.
#
# 开始时 $B$ 与 $W$ 无关，夹角约为 90 度，高维空间中任意两个随机方向都是如此；随后夹角下降：由 $B$ 送来的更新把 $B$ 写进了 $W$，$W^\top$ 的方向越来越接近 $B^\top$。如果 $B$ 每步都变，就无从对齐，夹角始终在 90 度附近，学得也差得多。
#
# ## The check 验证
#
# Everything above is read off $(a, \delta)$. So the harness proves these, at the trained parameters of the mislabelled
# run; the norms once more against `vmap(jax.grad)`, now for 400 images; and a feedback that equals $W$ has to give back
# backpropagation itself.
#
# 以上所有结果都由 $(a,\delta)$ 读出，因此最后在标签有错的那次训练得到的参数处验证它们本身；再用 `vmap(jax.grad)` 对 400 张图像核对一次范数；并验证当 $B=W$ 时反馈对齐就是反向传播。

# %%
report = reference.check(OBJECTIVE, params, x[:32], given[:32], compiler_options=quick)
print(report.summary())
assert report.passed

at = params, x[:400], given[:400]
error = np.abs(fast(squared_norms)(*at) / fast(one_by_one)(*at) - 1).max()
print(f"400 gradient norms of the trained network, largest relative difference {error:.1e}")
assert error < 1e-12

rules = mb.rules.backprop, mb.rules.FeedbackAlignment(params)
both = fast(lambda *at: [mb.backprop(OBJECTIVE, params, *at, rule=rule).deltas for rule in rules])(x[:32], given[:32])
assert all(np.array_equal(a, b) for a, b in zip(*both, strict=True))
