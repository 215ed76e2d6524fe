# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4. Why backward? 为什么要反向传播？
#
# A derivative can be carried along with the forward pass. The study note behind this project remarks on it: gradients
# *can* be had by forward propagation, but at a price. This notebook measures the price in operations, in memory and in
# noise, and ends with the proof that both directions give the same numbers.
#
# 导数可以随前向传播一起算出来。本项目所依据的学习笔记提到：用前向传播同样能得到梯度，只是要付出代价。本文用运算次数、内存和噪声来衡量这个代价，最后验证两个方向得到的数值完全相同。
#
# You will have seen: one forward pass gives one number of the gradient; the whole gradient then costs as many passes as
# there are parameters; one backward sweep gives all of it for two forward passes more, whatever the size.
#
# 读完你会看到：一次前向传播只能给出梯度的一个数；要得到整个梯度，参数有多少个就要算多少次；而反向传播无论网络多大，只多花大约两次前向传播的运算，就能一次得到全部梯度。

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.flatten_util import ravel_pytree

import manual_backprop as mb
import reference
from reference import xla
from reference.catalogue import data

jax.config.update("jax_enable_x64", True)
plt.style.use("pictures.mplstyle")

# %% [markdown]
# ## One pass, one number 一次前向传播，一个数
#
# Push a small change of the parameters through the network, next to the values. Give every parameter a rate of change,
# written with a dot: $\dot W$ says how fast $W$ changes, and $\dot z$ how fast $z$ changes because of it. Such a rate
# of change, carried along with a value, is called a *tangent*. By the product rule and the chain rule, (F1) and (F2)
# give
#
# $$\dot z^{(l)} = \dot W^{(l)} a^{(l-1)} + W^{(l)} \dot a^{(l-1)} + \dot b^{(l)}, \qquad
# \dot a^{(l)} = f_l'(z^{(l)}) \odot \dot z^{(l)} .$$
#
# 让参数的一个微小变化随着净输入和活性值一起向前传播。字母上的点表示变化率：$\dot W$ 是 $W$ 变化的快慢，$\dot z$ 是由此引起的 $z$ 变化的快慢。这样与数值同行的变化率称为**切向量**（tangent）。对 (F1) 和 (F2) 使用乘积法则和链式法则，就得到上面两式。
#
# A small network to try it on: 64 pixels, 8 neurons, 10 digits, and 32 images.
#
# 用一个小网络来试：64 个像素，8 个神经元，10 个数字类别，32 张图像。

# %%
digits, quick = data.load("digits"), xla.quick()  # quick: compile fast; most programs here run once
x, y = jnp.asarray(digits.x[:32]), jnp.asarray(digits.y[:32])

net = mb.mlp((64, 8, 10), activation="tanh")
objective = mb.Objective(net, mb.softmax_cross_entropy, mb.Frobenius(0.01))
random, shapes = np.random.default_rng(1), jax.eval_shape(net.init, jax.random.key(0))
params = jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.2, leaf.shape)), shapes)  # biases too: none is zero
P = sum(leaf.size for leaf in jax.tree.leaves(params))
print(f"{net}: P = {P} parameters")

# %% [markdown]
# Let one weight alone change, $\dot w^{(1)}_{4,21} = 1$, and everything else stand still: a *one-hot* direction, 1 at
# one place and 0 elsewhere. What comes out at the end is $\partial J / \partial w^{(1)}_{4,21}$: the loss's part
# through the output (J1), the regulariser's part directly (B6).
#
# 只让一个权重变化，$\dot w^{(1)}_{4,21}=1$，其余参数不动：这样的方向只有一处为 1，其余为 0，称为**独热**（one-hot）方向。前向传播到最后，得到的就是目标函数对这一个权重的偏导数：损失的部分经过输出而来 (J1)，正则化项的部分直接得到 (B6)。


# %%
def fast(function, static=()):
    """`function` compiled, quickly."""
    return jax.jit(function, static_argnums=static, compiler_options=quick)


def by_one_pass(params, i, j):
    """dJ/dw_ij of layer 1, by one forward pass along the direction in which w_ij changes alone."""
    direction = jax.tree.map(jnp.zeros_like, params)
    direction = (mb.Affine(direction[0].W.at[i, j].set(1), direction[0].b), direction[1])
    output, d_output = mb.pushforward(net, params, x, direction, jnp.zeros_like(x))
    return jnp.vdot(objective.loss.derivative(output, y), d_output) / len(x) + 0.01 * params[0].W[i, j]


# %%
by_forward = float(fast(by_one_pass)(params, 3, 20))  # Python counts from 0
step = fast(mb.backprop, 0)(objective, params, x, y)
by_sweep = float(np.asarray(step.gradients[0].W)[3, 20])
print(f"forward  {by_forward:.15f}\nbackward {by_sweep:.15f}")
assert abs(by_forward - by_sweep) < 1e-14

# %% [markdown]
# The two agree to the last digits. But the forward pass gave **one** number, and the backward sweep gave all 610.
#
# 两者直到最后几位数字都一致。但是前向传播只得到**一个**数，反向传播一次得到了全部 610 个。
#
# ## What XLA counts 让编译器来数运算次数
#
# Time depends on the machine. The number of floating-point operations does not, and the compiler counts it itself. Here
# are three programs for the same network: the objective alone, one directional derivative, and the whole gradient by
# one sweep forward and one back.
#
# 运行时间取决于机器，浮点运算次数则不然，而且编译器自己会数。下面数三个程序：只算目标函数、算一个方向导数、用一次反向传播算整个梯度。


# %%
def counted(program, *arguments):
    """(floating-point operations, bytes of temporary memory), by XLA's own analysis."""
    compiled = jax.jit(program).lower(*arguments).compile(compiler_options=quick)
    return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes


def along(objective):
    """The directional derivative as a function of (params, x, y, direction)."""
    return lambda *arguments: mb.forward_mode.directional_derivative(objective, *arguments)


# %%
def costs(hidden):
    """(P, operations of one forward pass, of one tangent with it, of both sweeps) of a tanh network for digits."""
    objective = mb.Objective(mb.mlp((64, *hidden, 10)), mb.softmax_cross_entropy, mb.Frobenius(0.01))
    params = jax.eval_shape(objective.net.init, jax.random.key(0))  # shapes are enough
    one_pass = counted(objective, params, x, y)[0]
    tangent = counted(along(objective), params, x, y, params)[0]
    both_sweeps = counted(mb.value_and_grad(objective), params, x, y)[0]
    return sum(leaf.size for leaf in jax.tree.leaves(params)), one_pass, tangent, both_sweeps


P_here, forward, tangent, sweeps = costs((8,))
print(f"forward pass {forward:.0f}, with one tangent {tangent:.0f}, with the backward sweep {sweeps:.0f} operations")
assert P_here == P and sweeps < 1.1 * tangent

# %% [markdown]
# **One tangent costs as much as the whole gradient.** Both double or triple the work of a forward pass. This is no
# accident: beside $W a$ a tangent needs $\dot W a$ and $W \dot a$, two products of the same size, and the backward
# sweep needs $W^\top \delta$ (B2) and $\delta a^\top$ (B4), again two. (A direction that changes one weight alone could
# skip what it leaves at zero. That saves a constant factor, never the factor $P$.)
#
# **算一个方向导数，与算整个梯度的运算量相当。** 两者都是单纯前向传播的两到三倍。这不是巧合：除了 $Wa$ 之外，前向方式要多算 $\dot W a$ 和 $W\dot a$ 两个乘积，反向则多算 $W^\top\delta$ (B2) 和 $\delta a^\top$ (B4)，也是两个。（如果只有一个权重变化，可以跳过始终为零的部分，但这只省下一个常数倍，省不掉因子 $P$。）
#
# ## As the network grows 网络变大时
#
# Now grow it: three hidden layers of 4 to 256 neurons, and 1 to 12 hidden layers of 32 neurons. To be fair to forward
# mode, let all of its tangents share one forward pass: $P$ tangents cost `forward + P * (tangent - forward)`.
#
# 让网络变大：三个隐藏层，每层 4 到 256 个神经元；或者每层 32 个神经元，1 到 12 个隐藏层。为了公平，让前向方式的所有方向共用一次前向传播：$P$ 个方向的运算量是 `forward + P * (tangent - forward)`。

# %%
wider = np.array([costs((width,) * 3) for width in (4, 16, 64, 256)])
deeper = np.array([costs((32,) * depth) for depth in (1, 4, 12)])


def slope(P, operations):
    """Of a straight line through the points, both axes logarithmic."""
    return np.polyfit(np.log(P), np.log(operations), 1)[0]


# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4))
for table, marker in (wider, "o"), (deeper, "^"):
    P_all, forward, tangent, sweeps = table.T
    left.loglog(P_all, forward + P_all * (tangent - forward), marker, color="C1")
    left.loglog(P_all, sweeps, marker, color="C0")
    right.semilogx(P_all, tangent / forward, marker, color="C1", mfc="none", ms=9)
    right.semilogx(P_all, sweeps / forward, marker, color="C0")
left.loglog(P_all := np.array([350, 150_000]), 100.0 * P_all**2, "C1", P_all, 180.0 * P_all, "C0", lw=1)
left.set(xlabel="parameters P", ylabel="operations", title="the whole gradient")
left.text(4e2, 1e11, "P tangents: slope 2", color="C1"), left.text(7e3, 1e5, "one sweep: slope 1", color="C0")
right.set(xlabel="parameters P", ylabel="forward passes", title="one tangent (open), one sweep (full)", ylim=(0, 4))
plt.show()

# %% [markdown]
# Circles are wider networks, triangles deeper ones. On the left, a slope of 2: with $P$ parameters a pass costs in
# proportion to $P$, and $P$ passes are needed. The backward sweep has a slope of 1. On the right, the price of one
# sweep (its forward pass included) stays between two and three forward passes throughout.
#
# 圆点是更宽的网络，三角是更深的网络。左图：前向方式的斜率为 2，因为每次传播的运算量与 $P$ 成正比，而且需要 $P$ 次；反向传播的斜率为 1。右图：一次反向传播（包括其中的前向传播）始终只相当于两到三次前向传播。

# %%
P_all, forward, tangent, sweeps = np.concatenate([wider, deeper]).T
by_tangents = slope(P_all, forward + P_all * (tangent - forward))
by_sweep = slope(P_all, sweeps)
print(f"slopes: P tangents {by_tangents:.2f}, one sweep {by_sweep:.2f}")
print(f"one sweep is {(sweeps / forward).min():.2f} to {(sweeps / forward).max():.2f} forward passes")
assert 1.9 < by_tangents < 2.1 and 0.9 < by_sweep < 1.1
assert np.all((sweeps / forward > 2) & (sweeps / forward < 3))
assert np.all((tangent / forward > 2) & (tangent / forward < 3))

# %% [markdown]
# ## It costs memory as well 内存也要付出代价
#
# So far $P$ times the price of one tangent was arithmetic. Compile the real thing, all $P$ tangents at once, and let
# XLA count again. It confirms the product, and it shows the price in memory: every tangent keeps its own $\dot a^{(l)}$
# for every neuron, so the memory grows with $P$ too. (Not by $P$ exactly: the count is of all temporary memory, and
# what else is kept differs between the two programs.) Run one after the other the tangents would need little memory;
# then they need $P$ passes of time.
#
# 以上 $P$ 个方向的代价是乘出来的。现在把全部 $P$ 个方向真的一起编译，再数一遍：运算次数与估计一致；内存也要付出代价，每个方向都要为每个神经元保存自己的 $\dot a^{(l)}$，内存随 $P$ 增长。（并不恰好是 $P$ 倍：数的是全部临时内存，两个程序保存的其他东西并不相同。）如果逐个方向计算，内存可以很少，但要花 $P$ 次传播的时间。

# %%
all_tangents = jax.vmap(along(objective), in_axes=(None, None, None, 0))
directions = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((P, *leaf.shape), leaf.dtype), params)
operations, memory = counted(all_tangents, params, x, y, directions)
of_sweep, memory_of_sweep = counted(mb.value_and_grad(objective), params, x, y)
_, forward, one, _ = costs((8,))
print(f"operations: {operations:.3g}, of that is P times one tangent {P * (one - forward) / operations:.2f}")
print(f"P = {P}; against one backward sweep {operations / of_sweep:.0f} times the operations")
print(f"and {memory / memory_of_sweep:.0f} times the memory")
assert 0.8 < P * (one - forward) / operations < 1.2
assert operations > 0.3 * P * of_sweep and memory > 0.1 * P * memory_of_sweep

# %% [markdown]
# ## A cheaper way out: one random direction 省事的办法：随机取一个方向
#
# If one pass gives one number, ask for a good one. Draw the direction $v$ at random, its entries independent and
# standard normal (mean 0, variance 1). One pass gives the slope in that direction, $g \cdot v$. Take it times $v$: the
# *forward gradient* (Baydin et al. 2022, arXiv:2202.08587)
#
# $$\hat g = (g \cdot v)\, v, \qquad \mathbb{E}\,\hat g = \mathbb{E}[v v^\top]\, g = g .$$
#
# $\mathbb{E}$ is the expectation, the mean over all draws of $v$. $\mathbb{E}[v v^\top] = I$, since entry $ij$ of it is
# $\mathbb{E}[v_i v_j]$: the variance 1 where $i = j$, and 0 elsewhere, because different entries are independent. So
# $\hat g$ is right on average (*unbiased*), for one forward pass and no backward sweep.
#
# 既然一次前向传播只给一个数，不妨随机取一个方向 $v$，各分量相互独立，服从标准正态分布（均值 0，方差 1）。一次前向传播给出沿 $v$ 的斜率 $g\cdot v$，再乘以 $v$，就是**前向梯度** $\hat g=(g\cdot v)v$（Baydin 等，2022）。$\mathbb{E}$ 表示期望，即对 $v$ 的所有抽样取平均。$\mathbb{E}[vv^\top]=I$，因为它的第 $ij$ 个元素是 $\mathbb{E}[v_iv_j]$：$i=j$ 时就是方差 1，否则由独立性等于 0。所以 $\hat g$ 平均而言等于梯度 $g$（无偏），而且不需要反向传播。
#
# Its noise has a closed form. Turn the axes until $g$ lies along the first; $v$ is normal in the turned axes too. Then
# $g \cdot v = \|g\|\, v_1$, and with $\mathbb{E}\,v_1^4 = 3$ and $\mathbb{E}[v_1^2 v_j^2] = 1$,
#
# $$\mathbb{E}\|\hat g\|^2 = \|g\|^2\, \mathbb{E}\big[v_1^2\,(v_1^2 + v_2^2 + \dots + v_P^2)\big]
# = \|g\|^2\, (3 + (P - 1)) = (P + 2)\, \|g\|^2,$$
#
# $$\mathbb{E}\|\hat g - g\|^2 = \mathbb{E}\|\hat g\|^2 - 2\, g \cdot \mathbb{E}\,\hat g + \|g\|^2
# = (P + 1)\, \|g\|^2 .$$
#
# 它的噪声也有精确的公式。旋转坐标轴，使 $g$ 沿第一个轴，$v$ 在新坐标下仍是标准正态的，于是 $g\cdot v=\|g\|v_1$。由 $\mathbb{E}\,v_1^4=3$ 和 $\mathbb{E}[v_1^2v_j^2]=1$ 就得到上面两式：噪声的均方是 $(P+1)\|g\|^2$，与参数个数成正比。


# %%
def ravel(tree):
    """All leaves as one vector, (P,)."""
    return ravel_pytree(tree)[0]


def forward_gradients(objective, params, key, draws):
    """(g . v) v for many v: (draws, P), each from one forward pass."""
    flat, unravel = ravel_pytree(params)

    def one(key):
        v = jax.random.normal(key, flat.shape)
        return along(objective)(params, x, y, unravel(v)) * v

    return jax.lax.map(one, jax.random.split(key, draws), batch_size=500)


# %% [markdown]
# First a look. The gradient of the 64 weights into neuron 4 of the first layer is an image of 8 by 8 pixels. Here it is
# by backpropagation, and as the mean of more and more forward gradients.
#
# 先看图：第一层第 4 个神经元的 64 个权重的梯度可以画成 8×8 的图像。最右边是反向传播的结果，左边是越来越多个前向梯度的平均。

# %%
g = np.asarray(fast(ravel)(step.gradients))
estimates = np.asarray(fast(forward_gradients, (0, 3))(objective, params, jax.random.key(2), 4096))
shown = {f"mean of {k}": estimates[:k].mean(axis=0) for k in (1, 100, 610, 4096)} | {"backprop": g}

figure, axes = plt.subplots(1, 5, figsize=(8, 2.1))
for axis, (name, gradient) in zip(axes, shown.items(), strict=True):
    image = gradient[3 * 64 : 4 * 64].reshape(8, 8)
    axis.imshow(image, cmap="RdBu", vmin=-abs(image).max(), vmax=abs(image).max())
    axis.set_title(name), axis.axis("off")
plt.show()

# %% [markdown]
# 610 draws cost 610 forward passes. By one-hot directions the same 610 passes would have given the gradient exactly,
# and the mean of 610 forward gradients still is as far off as the gradient is long. How far the mean of $K$ draws is
# off can be told in advance: $\sqrt{(P+1)/K}$.
#
# 610 次抽样就是 610 次前向传播：若用独热方向，同样的次数已经得到精确的梯度；而 610 个前向梯度的平均，误差仍与梯度本身一样大。$K$ 次平均的误差可以事先算出：相对于梯度的长度是 $\sqrt{(P+1)/K}$。

# %%
K = 2 ** np.arange(13)
off = np.array([np.linalg.norm(estimates[:k].mean(axis=0) - g) / np.linalg.norm(g) for k in K])
plt.loglog(K, off, "o", label="measured")
plt.loglog(K, np.sqrt((P + 1) / K), color="C1", label=r"$\sqrt{(P+1)/K}$")
plt.axvline(P, color="C6", ls=":", label="K = P: one-hot directions are exact")
plt.xlabel("forward gradients averaged, K"), plt.ylabel(r"$\|\,$mean$\,-\,g\| \;/\; \|g\|$")
plt.legend()
plt.show()
with_p_draws = np.linalg.norm(estimates[:P].mean(axis=0) - g) / np.linalg.norm(g)
print(f"the mean of K = P draws is off by {with_p_draws:.2f} times the gradient's length")
assert 0.8 < with_p_draws < 1.25
assert np.all(np.abs(np.log(off[6:] / np.sqrt((P + 1) / K[6:]))) < 0.25)

# %% [markdown]
# It falls as unbiasedness demands, and has no floor. (A single draw is usually better than its mean square: that is
# large because of few draws with a large $g \cdot v$.) Now the law itself, over networks from 85 to 2410 parameters:
# the mean of $\|\hat g - g\|^2 / \|g\|^2$ over 1000 draws against $P + 1$.
#
# 误差按无偏估计应有的速度下降，没有下限。（单独一次抽样通常比均方误差小：均方大，是因为少数几次的 $g\cdot v$ 很大。）再来验证公式本身：参数个数从 85 到 2410，对 1000 次抽样取 $\|\hat g-g\|^2/\|g\|^2$ 的平均，与 $P+1$ 比较。


# %%
def noise(hidden, draws=1000):
    """(P, mean of |ghat - g|^2 / |g|^2, its standard error) at the start of a network."""
    objective = mb.Objective(mb.mlp((64, hidden, 10)), mb.softmax_cross_entropy)
    params = objective.net.init(jax.random.key(3))
    g = ravel(mb.value_and_grad(objective)(params, x, y)[1])
    squares = ((forward_gradients(objective, params, jax.random.key(4), draws) - g) ** 2).sum(axis=1) / (g @ g)
    return g.size, squares.mean(), squares.std() / draws**0.5


P_all, measured, error = np.array([fast(noise, 0)(hidden) for hidden in (1, 4, 12, 32)]).T

# %%
plt.errorbar(P_all, measured, 4 * error, fmt="o", capsize=4, label="measured, 4 standard errors")
plt.loglog(P_all, P_all + 1, color="C1", label="P + 1")
plt.xlabel("parameters P"), plt.ylabel(r"$\mathrm{E}\,\|\hat g - g\|^2 \;/\; \|g\|^2$")
plt.legend()
plt.show()
print("measured / (P + 1):", *(f"{ratio:.3f}" for ratio in measured / (P_all + 1)))
assert np.all(np.abs(measured - (P_all + 1)) < 4 * error)
assert np.all(error < 0.06 * measured)  # small enough to tell P + 1 from 2 P or P / 2

# %% [markdown]
# So nothing comes for free: forward gradients trade the $P$ passes for a variance of $P + 1$. The backward sweep pays
# neither, because $\delta^{(l)}$ (C5) is shared: it is computed once for a layer, and all of the layer's parameters
# read their derivatives off it, (B3) and (B4).
#
# 天下没有免费的午餐：前向梯度省下了 $P$ 次传播，换来的是 $P+1$ 倍的方差。反向传播两样都不用付，因为误差项 $\delta^{(l)}$ 是共享的：每层只算一次，这一层所有参数的导数都由它读出，(B3) 和 (B4)。
#
# Forward propagation of a derivative keeps its place: where *one* direction of *many* outputs is asked for, one pass
# has it. `mb.gauss_newton_vector_product` and `mb.hessian_vector_product` are built on it.
#
# 用前向传播求导数仍有它的位置：如果要的是**许多**输出沿**一个**方向的导数，一次前向传播就够了。`mb.gauss_newton_vector_product` 和 `mb.hessian_vector_product` 正是建立在它之上。
#
# ## The check 验证
#
# The whole gradient three times: by $P$ forward passes, by the backward sweep, and by `jax.grad` of a program written
# independently. Then the harness, equation by equation.
#
# 用三种方法得到整个梯度：$P$ 次前向传播、一次反向传播、对另行编写的程序使用 `jax.grad`。最后用验证程序逐个公式检查。

# %%
all_passes = fast(mb.forward_mode.gradient_by_forward_propagation, 0)(objective, params, x, y)
by_hand = fast(mb.value_and_grad(objective))(params, x, y)[1]
by_jax = fast(reference.value_and_grad(objective))(params, x, y)[1]
f, h, j = (np.asarray(fast(ravel)(gradient)) for gradient in (all_passes, by_hand, by_jax))
of_f, of_h = (np.abs(gradient - j).max() / np.abs(j).max() for gradient in (f, h))
print(f"largest difference from jax.grad, relative: forward {of_f:.1e}, backward {of_h:.1e}")
assert of_f < 1e-14 and of_h < 1e-14

report = reference.check(objective, params, x, y, compiler_options=quick)
print(report.summary())
assert report.passed
