# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. Error terms and gradients 误差项与梯度
#
# Every layer has a few *local derivatives*: arrays that know the layer's own weights and activations and nothing of
# the loss. All that the loss has to say reaches a layer through one vector, the error term $\delta^{(l)}$. This
# notebook writes the local derivatives out as arrays, multiplies them by the chain rule, and gets the numbers that
# the backward sweep gets without ever forming those arrays. At the end you will have seen every equation from (C1) to
# (B6) as numbers, and a published example reproduced digit by digit.
#
# 每一层都有几个**局部导数**：它们只与本层的权重和活性值有关，与损失无关。损失的全部影响只通过一个向量传到这一层，这就是误差项 $\delta^{(l)}$。本文把局部导数写成具体的数组，用链式法则逐个相乘，得到的数与反向传播完全一致，而反向传播从不需要构造这些数组。读完之后，你会看到 (C1) 到 (B6) 的每个公式对应的具体数字，以及一个公开发表的例子被逐位重现。

# %%
import itertools
from decimal import Decimal

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import manual_backprop as mb
import reference
from reference.catalogue import published

jax.config.update("jax_enable_x64", True)
plt.style.use("pictures.mplstyle")
np.set_printoptions(precision=6, suppress=True, floatmode="fixed")

# %% [markdown]
# ## A network small enough to print 一个可以完整打印的网络
#
# Three inputs, three hidden neurons with tanh, two outputs with sigmoid, squared error, one example. $W^{(1)}$ is
# square on purpose: if somebody forgets a transpose there, the shapes will not complain.
#
# 三个输入，三个 tanh 隐藏神经元，两个 sigmoid 输出，平方损失，一个样本。$W^{(1)}$ 特意取成方阵：如果漏掉了转置，形状不会报错。

# %%
net = mb.mlp((3, 3, 2), activation="tanh", output_activation="sigmoid")
objective = mb.Objective(net, mb.squared_error)
W1 = jnp.array([[0.6, -0.4, 0.1], [0.5, 0.3, -0.2], [-0.1, 0.6, 0.4]])
W2 = jnp.array([[0.3, -0.5, 0.2], [0.7, 0.1, -0.6]])
params = (mb.Affine(W1, jnp.array([0.1, -0.1, 0.3])), mb.Affine(W2, jnp.array([0.05, -0.15])))
x, y = jnp.array([[1.0, 0.5, -0.8]]), jnp.array([[1.0, 0.0]])

step = mb.backprop(objective, params, x, y)
for l, (layer, delta) in enumerate(zip(step.trace, step.deltas, strict=True), start=1):
    print(f"layer {l}   z = {layer.z[0]}   a = {layer.a[0]}   delta = {delta[0]}")
print(f"loss L = {step.loss:.6f}")

# %% [markdown]
# Those are the results of the sweep. Now forget them and build the same deltas and gradients from local derivatives.
# (The letter $L$ has two jobs, which is the custom: alone, and in $\partial L/\partial z$, it is the loss; as the index
# of a layer, in $\delta^{(L)}$, it is the number of layers, here 2.)
#
# 以上是反向传播的结果。下面先不用它们，从局部导数出发，重新得到同样的误差项和梯度。（按照习惯，$L$ 有两个意思：单独出现时，以及在 $\partial L/\partial z$ 中，是损失；作为层的序号，如 $\delta^{(L)}$ 中，是层数，这里等于 2。）
#
# ## One layer, three local derivatives 一层，三个局部导数
#
# A layer computes $z = W a + b$ (F1). How does $z$ change when $W$, $b$ or $a$ changes? We write derivatives in
# *denominator layout*: $\partial z/\partial x$ has a row for every entry of $x$, what one derives by, and a column for
# every entry of $z$, what is derived. So $\partial z/\partial a$ is $W^\top$, not $W$:
#
# - $\partial z/\partial w_{ij}$ is the vector with $a_j$ at place $i$ and zero elsewhere (C3): in all,
#   an array with three axes.
# - $\partial z/\partial b = I$ (C4).
# - $\partial z/\partial a = W^\top$ (C6).
#
# 净输入 $z$ 对权重、偏置和前一层活性值的导数，就是这一层的三个局部导数。这里采用**分母布局**：$\partial z/\partial x$ 的每一行对应 $x$（求导的自变量）的一个元素，每一列对应 $z$ 的一个元素，所以 $\partial z/\partial a$ 是 $W^\top$ 而不是 $W$ (C6)。对偏置的导数是单位矩阵 (C4)；对整个权重矩阵的导数是有三个轴的数组（三阶张量）：$\partial z/\partial w_{ij}$ 是第 $i$ 个元素为 $a_j$、其余为零的向量 (C3)。

# %%
(first, second), (a1,) = step.trace, step.trace[0].a
dz_dW = mb.jacobians.dz_dW(a1, 2)  # of layer 2: what entered it is a^(1)
print("dz/dW of layer 2 has shape", dz_dW.shape, "and the entries")
for i in range(2):
    for j in range(3):
        print(f"  dz/dw[{i + 1},{j + 1}] = {dz_dW[i, j]}")
assert jnp.count_nonzero(dz_dW) == 2 * 3

# %%
figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.3))
for k, ax in enumerate(axes):
    plane = dz_dW[:, :, k]
    ax.imshow(plane, cmap="RdBu_r", vmin=-1, vmax=1)
    for (i, j), value in np.ndenumerate(plane):
        ax.text(j, i, f"{value:.3f}", ha="center", va="center", color="0.65" if value == 0 else "black")
    ax.set(xticks=range(3), yticks=range(2), xlabel="j", ylabel="i", title=rf"$\partial z_{k + 1} / \partial w_{{ij}}$")
    ax.set(xticklabels=[1, 2, 3], yticklabels=[1, 2])
    ax.grid(False)
plt.show()

# %% [markdown]
# Row $k$ of the plane for $z_k$ holds $(a^{(1)})^\top$, everything else is zero. A tensor with so little in it need
# not be stored.
#
# 第 $k$ 个平面中只有第 $k$ 行非零，这一行就是 $(a^{(1)})^\top$。信息这样少的张量，没有必要真的存下来。
#
# The fourth local derivative belongs to the activation function: $\partial a/\partial z = \mathrm{diag}(f'(z))$ (C7),
# diagonal because $f$ acts on each neuron alone.
#
# 第四个局部导数来自激活函数：$f$ 按位作用，所以它是对角矩阵 (C7)。

# %%
da_dz = [mb.jacobians.da_dz(f, t.z[0], t.a[0]) for f, t in zip(("tanh", "sigmoid"), step.trace, strict=True)]
print("da/dz of layer 1 =\n", da_dz[0])
print("dz2/da1 = W2 transposed =\n", mb.jacobians.dz_da(W2))
print("dz/db of layer 2 =\n", mb.jacobians.dz_db(second.z[0]))
assert jnp.allclose(jnp.diag(da_dz[0]), 1 - jnp.tanh(first.z[0]) ** 2, rtol=1e-15)

# %% [markdown]
# ## The error term at the output 输出层的误差项
#
# $\delta^{(L)} = f_L'(z^{(L)}) \odot \partial \ell/\partial o$ (B1), where $\ell$ is the loss of one example and $o$
# the output. The chain rule (C1) is the function `prod(dZ_dY, dY_dX, rank=...)`: it multiplies the two factors in the
# order that denominator layout asks for, $\partial Z/\partial X = (\partial Y/\partial X)(\partial Z/\partial Y)$, and
# sums over the axes of $Y$, what stands in between. `rank` is how many axes $Y$ has: 1 for a vector, so that for
# vectors `prod` is the product of a matrix with a vector.
#
# $\ell$ 是一个样本的损失，$o$ 是输出。链式法则 (C1) 就是函数 `prod(dZ_dY, dY_dX, rank=...)`：按分母布局要求的次序相乘，并对中间变量 $Y$ 的各个轴求和；`rank` 是 $Y$ 的轴数，$Y$ 为向量时等于 1，这时 `prod` 就是矩阵乘向量。把它用在损失对输出的导数上，就得到输出层的误差项 (B1)。

# %%
prod = mb.jacobians.prod
dl_do = mb.squared_error.derivative(step.output, y)[0]  # o - y
delta2 = prod(dl_do, da_dz[1], rank=1)
print("dl/do        =", dl_do)
print("delta2       =", delta2)
print("by the sweep =", step.deltas[1][0])
assert jnp.allclose(delta2, step.deltas[1][0], rtol=1e-15)

# %% [markdown]
# ## One layer down 向下传一层
#
# $$\delta^{(1)} = \underbrace{\mathrm{diag}(f'(z^{(1)}))}_{\partial a^{(1)}/\partial z^{(1)}}\;
# \underbrace{(W^{(2)})^\top}_{\partial z^{(2)}/\partial a^{(1)}}\;\delta^{(2)}
# = f'(z^{(1)}) \odot \big((W^{(2)})^\top \delta^{(2)}\big)
# \qquad \text{(B2)}$$
#
# The error term of a layer is that of the layer above, sent back through the weights, and damped by the slope of the
# activation function.
#
# 一层的误差项，等于上一层（更靠近输出的一层）的误差项沿权重传回来，再乘以激活函数的导数。

# %%
delta1 = prod(prod(delta2, mb.jacobians.dz_da(W2), rank=1), da_dz[0], rank=1)
print("delta1       =", delta1)
print("by the sweep =", step.deltas[0][0])
assert jnp.allclose(delta1, step.deltas[0][0], rtol=1e-14)

# %%
parts = {r"$\mathrm{diag}(f'(z^{(1)}))$": da_dz[0], r"$(W^{(2)})^\top$": W2.T}
parts |= {r"$\delta^{(2)}$": delta2[:, None], r"$\delta^{(1)}$": delta1[:, None]}
figure, axes = plt.subplots(1, 4, figsize=(6.4, 2.3), width_ratios=[3, 2, 1, 1])
figure.get_layout_engine().set(wspace=0.16)
for ax, (name, matrix), sign in zip(axes, parts.items(), ("·", "·", "=", ""), strict=True):
    limit = 1.6 * float(jnp.abs(matrix).max())
    ax.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
    for (i, j), value in np.ndenumerate(matrix):
        ax.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=9, color="0.65" if value == 0 else "black")
    ax.annotate(sign, (matrix.shape[1] - 0.5, len(matrix) / 2 - 0.5), (8, 0), textcoords="offset points", va="center")
    ax.set(xticks=[], yticks=[], title=name, frame_on=False)
plt.show()

# %% [markdown]
# ## From the error term to the gradient 从误差项到梯度
#
# A gradient is a local derivative times the error term (C2). Multiplying the tensor of (C3) by $\delta$ leaves the
# outer product $\delta^{(l)} (a^{(l-1)})^\top$ (B4), and the identity of (C4) leaves $\delta^{(l)}$ itself (B3).
#
# 梯度等于局部导数乘以误差项 (C2)。三阶张量乘以 $\delta$，结果就是外积 (B4)；单位矩阵乘以 $\delta$，结果就是 $\delta$ 本身 (B3)。

# %%
for l, (delta, a_in) in enumerate([(delta1, x[0]), (delta2, a1)]):
    by_chain_rule = prod(delta, mb.jacobians.dz_dW(a_in, delta.size), rank=1)
    print(f"dL/dW{l + 1} by the chain rule =\n{by_chain_rule}")
    outer_product = jnp.outer(delta, a_in)  # (B4)
    assert jnp.array_equal(by_chain_rule, outer_product)
    assert jnp.allclose(step.gradients[l].W, outer_product, rtol=1e-14)
    assert jnp.allclose(step.gradients[l].b, prod(delta, mb.jacobians.dz_db(delta), rank=1), rtol=1e-14)

# %% [markdown]
# The same vector serves once more at the bottom: $\partial L/\partial x = (W^{(1)})^\top \delta^{(1)}$ (B5).
#
# 同一个向量还给出损失对输入的导数 (B5)。

# %%
d_x = prod(delta1, mb.jacobians.dz_da(W1), rank=1)
print("dL/dx        =", d_x)
print("by the sweep =", step.d_x[0])
assert jnp.allclose(d_x, step.d_x[0], rtol=1e-14)

# %% [markdown]
# ## What the sweep saves 反向传播省下了什么
#
# How large would the explicit arrays be in a network of ordinary size? `jax.eval_shape` tells their shapes without
# making them.
#
# 如果网络是普通大小，这些数组会有多大？`jax.eval_shape` 不必真的构造数组就能回答。

# %%
sizes = (784, 512, 512, 10)
print("layer     entries of dz/dW     entries of a and delta")
tensors, kept = [], []
for l, (d_in, d_out) in enumerate(itertools.pairwise(sizes), start=1):
    a_in = jax.ShapeDtypeStruct((d_in,), jnp.float32)
    tensors.append(jax.eval_shape(lambda a, d=d_out: mb.jacobians.dz_dW(a, d), a_in).size)
    kept.append(d_in + d_out)
    print(f"{l}     {tensors[-1]:20,}     {kept[-1]:,}")
print(f"all   {sum(tensors):20,}     {sum(kept):,}")
assert sum(tensors) > 300_000_000 and sum(kept) < 3_000

# %% [markdown]
# More than three hundred million entries, for one example, against fewer than three thousand. The pair
# $(a^{(l-1)}, \delta^{(l)})$ holds the same information.
#
# 一个样本就要三亿多个数，而反向传播只保留不到三千个。$(a^{(l-1)}, \delta^{(l)})$ 这一对向量已经包含了同样的信息。
#
# ## Many examples and the regulariser 多个样本与正则化项
#
# Over a batch the gradient is the mean of the examples' outer products: $1/N$ enters here and nowhere else, and row
# $n$ of `deltas` stays the error term of example $n$. The regularisation term
# $s = \frac{\lambda}{2}\sum_l \|W^{(l)}\|_F^2$ (J2) adds $\lambda W^{(l)}$ to the gradient of every weight matrix and
# nothing to that of a bias (B6).
#
# 对一批样本，梯度是各样本外积的平均，$1/N$ 只在这里出现，`deltas` 的第 $n$ 行仍是第 $n$ 个样本的误差项。正则化项给每个权重矩阵的梯度加上 $\lambda W^{(l)}$，偏置不受影响 (B6)。

# %%
rng = np.random.default_rng(0)
xs, ys = jnp.asarray(rng.normal(size=(4, 3))), jnp.asarray(rng.uniform(size=(4, 2)))
lam = 0.1
plain = mb.backprop(objective, params, xs, ys)
full = mb.backprop(mb.Objective(net, mb.squared_error, mb.Frobenius(lam)), params, xs, ys)
outer_products = [jnp.outer(delta, a) for delta, a in zip(plain.deltas[0], xs, strict=True)]
assert jnp.allclose(plain.gradients[0].W, sum(outer_products) / 4, rtol=1e-14)  # (B4)
for before, after, p in zip(plain.gradients, full.gradients, params, strict=True):
    print("dJ/dW - dL/dW =\n", after.W - before.W)
    assert jnp.allclose(after.W - before.W, lam * p.W, rtol=1e-13) and jnp.array_equal(after.b, before.b)  # (B6)
assert jnp.allclose(full.d_lam, full.penalty / lam)

# %% [markdown]
# ## Published numbers 公开发表的数字
#
# Matt Mazur's "A Step by Step Backpropagation Example" (2015) works a 2-2-2 network with sigmoids by hand. The
# package carries the figures it prints as text, so that no digit is lost, and puts ours beside each, rounded to as many
# places. Where the two texts differ, the difference is given in units of the last printed place.
#
# Matt Mazur 2015 年的文章手算了一个 2-2-2 的 sigmoid 网络。程序包以文本形式保存了文中印出的数字，下表把我们的结果四舍五入到同样的位数，并列在旁边；两者不同时，以印出的最后一位为单位给出差别。

# %%
mazur = published.examples()[0]
figures = [f for f in published.figures(mazur) if "recomputation" not in f.name]  # two are not from the post
print(f"{'quantity':22s}{'printed':>23s}{'ours':>23s}   last places apart")
for f in figures:
    places = len(f.printed.partition(".")[2])
    ours = f"{f.ours:.{places}f}"
    apart = round(abs(Decimal(ours) - Decimal(f.printed)) * 10**places)
    print(f"{f.name:22s}{f.printed:>23s}{ours:>23s}   {apart or ''}".rstrip())
    assert apart == 0 or (len(Decimal(f.printed).as_tuple().digits) >= 16 and apart < 20)
print(f"\n{sum(f.passed for f in figures)} of {len(figures)} figures reproduced")
assert len(figures) == 30 and all(f.passed for f in figures)

# %% [markdown]
# Every figure printed with up to 15 significant digits is the same to the last one. The four that differ were printed
# with 16 or 17, about all that double precision can tell apart, and a difference in the last two of them is of the size
# that rounding makes.
#
# 凡是印出的有效数字不超过 15 位的，全部逐位相同。有差别的四个印了 16 或 17 位，大约是双精度所能分辨的极限，最后两位上的差别与舍入误差的大小相当。
#
# One number of the post cannot be reproduced, and it is worth knowing: the loss after one step of size 0.5 is printed
# as 0.291027924.
#
# 文中有一个数无法重现，值得一提：以步长 0.5 更新一步之后的损失，文中印为 0.291027924。

# %%
p = mazur.params
gradients = mb.backprop(mazur.objective, p, mazur.x, mazur.y).gradients
updated = tuple(mb.Affine(q.W - 0.5 * g.W, q.b) for q, g in zip(p, gradients, strict=True))  # its biases stay
after_one_step = mazur.objective(updated, mazur.x, mazur.y)
print(f"printed 0.291027924, ours {after_one_step:.9f}")
assert abs(after_one_step - 0.291027774) < 5e-10

# %% [markdown]
# The weights after the step agree with the printed ones to the last digit (`W1_after_step`, `W2_after_step` above),
# so the gradients are the same, and the printed loss does not follow from the printed weights.
#
# 更新后的权重（上表中的 `W1_after_step` 和 `W2_after_step`）与文中逐位一致，所以梯度没有差别，只是印出的损失与印出的权重对不上。
#
# ## The check 验证
#
# Last, the harness. It holds the sweep against `jax.grad` of an objective written separately, every $z$, $a$,
# $\delta$ and gradient, equation by equation and end to end. And it does the same for the gradient that this notebook
# multiplied out from explicit Jacobians.
#
# 最后用验证程序：逐个公式，并且端到端地，把每个净输入、活性值、误差项和梯度与 `jax.grad` 对照（目标函数另行编写），再同样检查本文用局部导数逐个相乘得到的梯度。


# %%
def by_explicit_jacobians(params):
    output, trace = mb.forward(net, params, x)
    dL_da, gradients = mb.squared_error.derivative(output, y)[0], []
    for l, a_in in ((1, trace[0].a[0]), (0, x[0])):
        z, a = trace[l].z[0], trace[l].a[0]
        delta = prod(dL_da, mb.jacobians.da_dz(net.nodes[l].activation, z, a), rank=1)
        dW = prod(delta, mb.jacobians.dz_dW(a_in, z.size), rank=1)
        gradients.insert(0, mb.Affine(dW, prod(delta, mb.jacobians.dz_db(z), rank=1)))
        dL_da = prod(delta, mb.jacobians.dz_da(params[l].W), rank=1)
    return tuple(gradients)


# %%
sweep = reference.check(mb.Objective(net, mb.squared_error, mb.Frobenius(lam)), params, xs, ys)
print("the sweep:     ", sweep.summary())
chain = reference.check_gradient(lambda p: objective(p, x, y), by_explicit_jacobians, params)
print("the chain rule:", chain.summary())
assert sweep.passed and chain.passed
