# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. Forward propagation and the computational graph 前向传播与计算图
#
# A fully connected network does two things in every layer: it adds up its inputs with weights, which gives the *net
# input* $z^{(l)}$, and bends the sum with a function, which gives the *activation* $a^{(l)}$. This notebook computes
# both by hand, keeps every one of them, and draws what depends on what. At the end you will have seen that a network
# is a composition of small steps, and that its computational graph is the list of these steps.
#
# 全连接网络的每一层只做两件事：把输入加权求和，得到**净输入** $z^{(l)}$；再用激活函数作用一次，得到**活性值** $a^{(l)}$。本文把这两者都算出来并全部保留，再画出谁依赖谁。读完之后你会看到：网络就是许多小步骤的复合，而计算图正是这些步骤的清单。

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import manual_backprop as mb
import reference
from reference.catalogue import data

jax.config.update("jax_enable_x64", True)
plt.style.use("pictures.mplstyle")
np.set_printoptions(precision=4, suppress=True)

# %% [markdown]
# ## One layer, one example 一层，一个样本
#
# A layer has a matrix of weights $W^{(l)}$, one row for each of its neurons, and a bias $b^{(l)}$. Its net input is
# $$z^{(l)} = W^{(l)} a^{(l-1)} + b^{(l)} \qquad \text{(F1)}$$
# and its output, the activation, is $a^{(l)} = f_l(z^{(l)})$ (F2). The input of the network is $a^{(0)} = x$.
#
# 每一层有权重矩阵 $W^{(l)}$（每个神经元一行）和偏置 $b^{(l)}$。先按 (F1) 求净输入，再按 (F2) 求活性值；网络的输入记作 $a^{(0)} = x$。

# %%
net = mb.mlp((2, 3, 2), activation="tanh")
params = (
    mb.Affine(W=jnp.array([[0.5, -1.0], [0.2, 0.8], [-0.7, 0.3]]), b=jnp.array([0.1, -0.2, 0.0])),
    mb.Affine(W=jnp.array([[1.0, -0.5, 0.4], [0.3, 0.9, -0.6]]), b=jnp.array([0.0, 0.05])),
)
x = jnp.array([[1.0, 2.0]])  # one example is one row

# %% [markdown]
# With paper and pencil, the first neuron: $0.5 \cdot 1 - 1.0 \cdot 2 + 0.1 = -1.4$.
#
# 用笔算第一个神经元：$0.5 \cdot 1 - 1.0 \cdot 2 + 0.1 = -1.4$。

# %%
W, b = np.array(params[0].W), np.array(params[0].b)
z = W @ np.array([1.0, 2.0]) + b
print("z^(1) =", z)
print("a^(1) =", np.tanh(z))
assert np.isclose(z[0], -1.4)

# %% [markdown]
# ## The sweep keeps everything 前向传播保留每一个值
#
# `mb.forward` does this for all layers and returns the output with a *trace*: every $z^{(l)}$ and $a^{(l)}$, as plain
# arrays. Backpropagation will need them: so the first of its three steps is to compute and keep them all.
#
# `mb.forward` 逐层计算，除输出外还返回 trace，里面是每一层的 $z^{(l)}$ 和 $a^{(l)}$。反向传播要用到它们，所以它的三个步骤中，第一步就是全部算出并保留。

# %%
output, trace = mb.forward(net, params, x)
for layer, at in enumerate(trace, 1):
    print(f"z^({layer}) = {np.array(at.z[0])}    a^({layer}) = {np.array(at.a[0])}")
assert np.allclose(trace[0].z[0], z) and np.allclose(trace[0].a[0], np.tanh(z))
assert (output == trace[-1].a).all()

# %% [markdown]
# ## A composition 复合函数
#
# Put one layer into the next and the whole network is one expression (F3):
# $$\phi(x; W, b) = W^{(2)} \tanh(W^{(1)} x + b^{(1)}) + b^{(2)}.$$
# The last layer here has no bend: its $f$ is the identity, since the loss will take the sums as they are.
#
# 把前一层代入后一层，整个网络就是一个复合函数 (F3)。最后一层的激活函数是恒等函数，因为损失直接使用这些和。

# %%
(W1, b1), (W2, b2) = [(p.W, p.b) for p in params]
phi = W2 @ jnp.tanh(W1 @ x[0] + b1) + b2
print("phi(x) =", np.array(phi), "  output =", np.array(output[0]))
assert jnp.allclose(phi, output[0], rtol=1e-14)

# %% [markdown]
# ## What the bend is for 激活函数的作用
#
# Without $f$ the composition would collapse to a single matrix. The derivative $f'$, drawn beside it, is what an
# error will be multiplied by on its way back: where it is near zero, nothing comes through.
#
# 没有激活函数，复合之后仍只是一个矩阵。右图的导数 $f'$ 是误差反向传播时要乘的因子：它接近零的地方，误差传不过去。

# %%
figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.0))
line = jnp.linspace(-4, 4, 201)
for name in ("sigmoid", "tanh", "relu", "gelu"):
    f = mb.activations.get(name)
    axes[0].plot(line, f.f(line), label=name)
    axes[1].plot(line, f.df(line, f.f(line)), label=name)
axes[0].set(title=r"activation $f(z)$", xlabel=r"$z$", ylim=(-1.3, 3))
axes[1].set(title=r"slope $f'(z)$", xlabel=r"$z$")
axes[0].legend()
plt.show()

# %%
flat = mb.mlp((2, 3, 2), activation="identity")
straight, _ = mb.forward(flat, params, x)
one_matrix = (W2 @ W1) @ x[0] + (W2 @ b1 + b2)
print("three neurons without a bend:", np.array(straight[0]), " one matrix:", np.array(one_matrix))
assert jnp.allclose(straight[0], one_matrix, rtol=1e-14)

# %% [markdown]
# ## A batch, and a real one 一批真实的样本
#
# Examples are rows, so a batch needs no loop: the arrays only get taller. Here are the net inputs and activations of
# 1797 handwritten digits in a network with two hidden layers. Look at the second column of pictures: tanh has squeezed
# everything into $(-1, 1)$.
#
# 样本按行排列，一批样本不需要循环，数组只是行数变多。下面是 1797 个手写数字在两个隐藏层中的净输入和活性值；图的右列可见 tanh 把所有值压到了 $(-1, 1)$ 之间。

# %%
digits = data.load("digits")
big = mb.mlp((64, 64, 32, 10), activation="tanh")
weights = big.init(jax.random.key(0))
scores, kept = mb.forward(big, weights, jnp.asarray(digits.x))
for layer, at in enumerate(kept, 1):
    print(f"layer {layer}: z is {at.z.shape}, a is {at.a.shape}, |a| at most {float(jnp.abs(at.a).max()):.6f}")
assert all(float(jnp.abs(at.a).max()) < 1 for at in kept[:-1])

# %%
figure, axes = plt.subplots(2, 2, figsize=(7.6, 4.2))
for row, at in enumerate(kept[:2]):
    axes[row, 0].hist(np.ravel(at.z), bins=80, color="C0")
    axes[row, 1].hist(np.ravel(at.a), bins=80, color="C1")
    axes[row, 0].set(title=rf"net input $z^{{({row + 1})}}$", yticks=[])
    axes[row, 1].set(title=rf"activation $a^{{({row + 1})}}$", yticks=[], xlim=(-1.05, 1.05))
plt.show()

# %% [markdown]
# ## The objective 目标函数
#
# A *loss* compares the output with the target $y$; over a batch one takes the mean $L$ (J1). The *regularisation
# term* $s = \frac{\lambda}{2} \sum_l \lVert W^{(l)} \rVert_F^2$ (J2) is large where weights are large. Their sum
# $J = L + s$ (J3) is the one number that training makes small.
#
# **损失** $L$ 衡量输出与标签 $y$ 的差距，一批样本取平均 (J1)；**正则化项** $s$ (J2) 随权重变大而变大。两者之和 $J = L + s$ (J3) 就是训练要减小的目标函数。

# %%
objective = mb.Objective(net, loss=mb.squared_error, regularizer=mb.Frobenius(0.1))
y = jnp.array([[1.0, 0.0]])
L = 0.5 * jnp.sum((output - y) ** 2)
s = 0.1 / 2 * (jnp.sum(W1**2) + jnp.sum(W2**2))
J = objective(params, x, y)
print(f"L = {float(L):.6f}   s = {float(s):.6f}   J = {float(J):.6f}")
assert jnp.allclose(J, L + s, rtol=1e-14)

# %% [markdown]
# ## The computational graph 计算图
#
# Everything so far in one picture (G1). Squares are variables, circles are operators; an arrow says "is needed for".
# Follow the lower line and you have done forward propagation. The upper line says that every weight goes into $s$
# too.
#
# 把以上所有步骤画成一张图 (G1)：方块是变量，圆圈是运算，箭头表示“用于计算”。沿着下面一行走一遍就是前向传播；上面的线表示每个权重矩阵还参与正则化项 $s$。

# %%
mb.forward_graph(objective, params, x, y)  # with a batch, shapes and norms are shown

# %% [markdown]
# A graph is plain data, so it can be asked. An operator can run as soon as what it needs is there. Parameters and data
# are there from the start; everything else stands in the list of vertices behind all that it is computed from.
#
# 图本身也是数据，可以直接查询：所需的变量都有了，运算才能执行。参数和数据一开始就有；其余每个顶点，在列表中都排在计算它所需的顶点之后。

# %%
graph = mb.forward_graph(objective)
for vertex in graph.vertices:
    if vertex.kind == "operator":
        needs = sorted(arrow.tail for arrow in graph.into(vertex.key))
        print(f"{vertex.key:8s} needs {', '.join(needs)}")
place = {vertex.key: i for i, vertex in enumerate(graph.vertices)}
given = {vertex.key for vertex in graph.vertices if vertex.role in ("parameter", "data")}
assert all(place[a.tail] < place[a.head] or a.tail in given for a in graph.arrows)

# %% [markdown]
# ## The way back 反向的图
#
# The same squares, with gradients in them and the arrows turned round. On every arrow stands a *local derivative*;
# the gradient at its head is the one at its tail times that. At every $z$ sits the error term $\delta^{(l)}$, one for
# each example; on the way up to the gradient of a parameter the mean over the examples is taken. The next notebook
# walks this graph with numbers.
#
# 同样的方块，里面换成梯度，箭头反过来。每条箭头上写着**局部导数**：箭头起点的梯度乘上它，就得到终点的梯度；每个 $z$ 处的梯度就是误差项 $\delta^{(l)}$，每个样本各有一个；向上到参数的梯度时，对样本取平均。下一篇会带着具体数字走一遍这张图。

# %%
mb.backward_graph(objective)

# %% [markdown]
# ## The check 验证
#
# Everything above came from our own forward code. An independent program, written with `jax.nn` and `jax.grad`,
# computes $z$, $a$, $L$, $s$ and $J$ again, and every number is compared within a derived rounding bound. Shown are the
# rows that judge one equation each, from the values that entered it. The summary also counts those that compare a
# number *end to end*, with the whole independent program: a small error that every layer passes on would show there.
#
# 以上都来自我们自己的前向代码。另一个独立的程序用 `jax.nn` 和 `jax.grad` 重新计算 $z$、$a$、$L$、$s$、$J$，逐个比较，容许的误差由舍入误差推导而来。表中每行单独检查一个公式，用的是实际进入它的值；总结中还包括“端到端”的比较，即与另一个程序从头算到尾的结果相比，逐层积累的小误差会在那里显现。

# %%
report = reference.check(objective, params, x, y)
for row in report.rows:
    if row.equation[:2] in ("(F", "(J"):
        print(f"{row.path:11s} {row.equation:5s} {row.verdict}: {row.used:.2f} of the tolerance")
print(report.summary())
report.raise_if_failed()
