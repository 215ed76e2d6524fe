# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 8. Attention by hand 手写注意力
#
# Attention has no parameters. It takes queries $q$, keys $k$ and values $v$, and its whole backward pass is one
# question: how does $\delta$ get through a softmax? This notebook answers it with numbers that one can check on paper,
# then follows $\delta$ through a small GPT.
#
# 注意力没有参数。它接收查询 $q$、键 $k$ 和值 $v$，它的反向传播归根到底只有一个问题：$\delta$ 怎样穿过 softmax？本文先用可以在纸上验算的数字来回答，再跟着 $\delta$ 走过一个小 GPT。
#
# You will have seen: a published example, forward and back; softmax's Jacobian, and how to do without it; attention in
# blocks, which never holds a $T \times T$ array; where $\delta$ of one letter comes from; which letters surprise the
# network; and a fault in the softmax, found and named.
#
# 读完你会看到：一个公开发表的例子的前向与反向；softmax 的雅可比矩阵，以及怎样不用它；分块计算、从不保存 $T \times T$ 数组的注意力；一个字母的 $\delta$ 来自哪里；哪些字母让网络感到意外；以及 softmax 中的一个错误如何被发现、被指名。

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import manual_backprop as mb
import reference
from reference import xla

jax.config.update("jax_enable_x64", True)
plt.style.use("pictures.mplstyle")
np.set_printoptions(precision=4, suppress=True)
QUICK = xla.quick()  # options to compile fast; what is compiled here runs once or for seconds

# %% [markdown]
# ## Three words 三个词
#
# Each row of $q$, $k$, $v$ belongs to one word, and $d$ is the length of a query:
#
# $$S = \frac{q k^\top}{\sqrt d}, \qquad P = \operatorname{softmax}(S) \text{ of every row}, \qquad o = P v .$$
#
# Row $t$ of $P$ says how much word $t$ takes from each of the others; $o_t$ is that mixture of the values. The numbers
# are those of Karim, *Illustrated: Self-Attention* (2019), which leaves out $1/\sqrt d$; so $q$ is multiplied by
# $\sqrt 3$, and the layer divides by it again.
#
# $q$、$k$、$v$ 的每一行对应一个词，$d$ 是查询向量的长度。$P$ 的第 $t$ 行表示第 $t$ 个词从各个词取多少，$o_t$ 就是按这个比例混合的值。数字取自 Karim 的 *Illustrated: Self-Attention*（2019）。原文没有 $1/\sqrt d$，所以先把 $q$ 乘以 $\sqrt 3$，再由这一层除回去。

# %%
q = jnp.array([[1.0, 0, 2], [2, 2, 2], [2, 1, 3]]) * 3**0.5
k = jnp.array([[0.0, 1, 1], [4, 4, 0], [2, 3, 1]])
v = jnp.array([[1.0, 2, 3], [2, 8, 0], [2, 6, 3]])

P = jax.nn.softmax(q @ k.T / 3**0.5, axis=1)
three_words = mb.Attention(heads=1, causal=False)
(o,), saved = three_words.net_input((), (q[None], k[None], v[None]))  # one example: None puts N = 1 in front
print(f"P, each row adds up to 1:\n{P}\n\no by the layer:\n{o}")

# %%
printed_P = [[6.3379e-02, 4.6831e-01, 4.6831e-01], [6.0337e-06, 9.8201e-01, 1.7986e-02]]
printed_o = [[1.9366, 6.6831, 1.5951], [2.0000, 7.9640, 0.0540], [1.9997, 7.7599, 0.3584]]
assert np.allclose(P[:2], printed_P, rtol=1e-5, atol=0) and np.allclose(o, printed_o, rtol=0, atol=5e-5)
assert jnp.allclose(o, P @ v, rtol=1e-14)
print("every digit is as published")

# %% [markdown]
# Word 1 divides its attention evenly between words 2 and 3. Word 2 has nearly made up its mind: it takes 98 % from
# itself.
#
# 第 1 个词的注意力平分给第 2、3 个词；第 2 个词几乎已经拿定主意，98% 取自它自己。
#
# ## Back through a softmax 反向穿过 softmax
#
# Let $g = \partial L/\partial o$ arrive from above. $o = P v$ is a product of matrices, so
# $\partial L/\partial v = P^\top g$ and $dP = g v^\top$, where $dP$ is short for $\partial L/\partial P$. Now the softmax.
# For one row $p$ of $P$ the Jacobian is
#
# $$\frac{\partial p}{\partial s} = J = \operatorname{diag}(p) - p\, p^\top, \qquad dS_t = J_t \, dP_t .$$
#
# 设上方传来 $g = \partial L/\partial o$。$o = Pv$ 是矩阵乘法，所以 $\partial L/\partial v = P^\top g$，$dP = g v^\top$（$dP$ 是 $\partial L/\partial P$ 的简写）。接下来是 softmax：对 $P$ 的一行 $p$，雅可比矩阵如上式。

# %%
g = jnp.array([[1.0, -1, 2], [0, 1, -1], [-2, 0, 1]])
dP = g @ v.T
J = jnp.stack([jnp.diag(p) - jnp.outer(p, p) for p in P])
dS_by_J = jnp.stack([J_t @ dP_t for J_t, dP_t in zip(J, dP, strict=True)])
print(f"dP = g v^T:\n{dP}\n\ndS, row by row:\n{dS_by_J}")
assert jnp.allclose(J, jax.vmap(jax.jacobian(jax.nn.softmax))(q @ k.T / 3**0.5), atol=1e-15)

# %%
figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.4))
for t, ax in enumerate(axes):
    ax.imshow(J[t], cmap="RdBu", vmin=-0.5, vmax=0.5)
    for i, j in np.ndindex(3, 3):
        ax.text(j, i, f"{J[t, i, j]:.3f}".replace("-0.000", "0.000"), ha="center", va="center", fontsize=9)
    ax.set(title=f"J of word {t + 1}", xticks=[], yticks=[], frame_on=False)
    ax.grid(False)
plt.show()

# %% [markdown]
# $J$ is symmetric, and its rows add up to 0, since more attention for one word is less for the others. Where $p$ is
# almost 0 or 1, $J$ is almost 0: word 2 has decided, and almost nothing gets through to its scores.
#
# $J$ 是对称的，每行之和为 0，因为多注意一个词，就要少注意其他词。$p$ 接近 0 或 1 时 $J$ 接近 0：第 2 个词已经拿定主意，误差几乎传不到它的得分。
#
# ## Without a Jacobian 不用雅可比矩阵
#
# $T$ rows have $T$ Jacobians, $T^3$ numbers. None is needed. Multiply $J\,dP_t$ out, and entry $j$ is
# $p_j\,dP_{tj} - p_j \sum_i p_i\, dP_{ti}$, or for all rows at once
#
# $$dS = P \odot \big(dP - \operatorname{rowsum}(P \odot dP)\big) .$$
#
# The sum needs not even $dP$. Since $dP_{tj} = g_t \cdot v_j$,
#
# $$\sum_j P_{tj}\, dP_{tj} = g_t \cdot \sum_j P_{tj} v_j = g_t \cdot o_t .$$
#
# $T$ 行就有 $T$ 个雅可比矩阵，共 $T^3$ 个数，却一个也不需要。把 $J\,dP_t$ 乘开，就得到上面第一式。式中的行和甚至用不着 $dP$：因为 $dP_{tj} = g_t \cdot v_j$，它等于 $g_t \cdot o_t$，即上面第二式。

# %%
rowsum = jnp.sum(P * dP, axis=1, keepdims=True)
dS = P * (dP - rowsum)
print("rowsum(P * dP):", rowsum[:, 0])
print("g . o:         ", jnp.sum(g * o, axis=1))
print("largest difference to J dP:", f"{jnp.abs(dS - dS_by_J).max():.0e}")
assert jnp.allclose(dS, dS_by_J, atol=1e-14) and jnp.allclose(rowsum[:, 0], jnp.sum(g * o, axis=1), rtol=1e-14)

# %% [markdown]
# The rest is two products, as $S = q k^\top / \sqrt d$: $\;dq = dS\, k / \sqrt d\;$ and
# $\;dk = dS^\top q / \sqrt d$. Beside them are the layer's own `transport` and JAX's `jax.vjp` of the three formulas
# above.
#
# 剩下的只是两次乘法：由 $S = qk^\top/\sqrt d$ 得到 $dq$ 和 $dk$。下面把它们与这一层自己的 `transport`，以及 JAX 对上面三个公式求出的 `jax.vjp` 放在一起比较。


# %%
def plain(q, k, v, causal=False):
    """The three formulas for a batch, one head; a causal row sees no word after its own."""
    S = jnp.einsum("ntd,nsd->nts", q, k) / q.shape[-1] ** 0.5
    if causal:
        S = jnp.where(jnp.tril(jnp.ones(S.shape, bool)), S, -jnp.inf)
    return jax.nn.softmax(S, axis=-1) @ v


ours = dS @ k / 3**0.5, dS.T @ q / 3**0.5, P.T @ g
by_layer = three_words.transport((), saved, g[None])
by_jax = jax.vjp(plain, q[None], k[None], v[None])[1](g[None])

# %%
for name, mine, layer, theirs in zip(("dq", "dk", "dv"), ours, by_layer, by_jax, strict=True):
    print(f"{name}, by hand and by jax.vjp:\n{np.hstack([mine, theirs[0]])}")
    assert jnp.allclose(mine, theirs[0], atol=1e-14) and jnp.allclose(layer, theirs, atol=1e-14)

# %% [markdown]
# ## In blocks 分块计算
#
# The way back needs $P$, and $P$ has $T^2$ numbers for every head. Keep one number a row instead, the log of its sum:
#
# $$\ell_t = \log \sum_j e^{S_{tj}}, \qquad P_{tj} = e^{S_{tj} - \ell_t} .$$
#
# With it, any rows of $P$ can be made again, a few at a time, from $q$ and $k$. Each block of rows adds its part to
# $dk$ and $dv$ and is forgotten. The row sums are no obstacle: they are $g_t \cdot o_t$. This is the idea of
# FlashAttention (Dao et al. 2022, arXiv:2205.14135). In the layer it is one argument, `block`.
#
# 反向传播需要 $P$，而每个头的 $P$ 有 $T^2$ 个数。可以改为每行只保留一个数，即该行指数之和的对数 $\ell_t$。有了它，$P$ 的任意几行都能由 $q$ 和 $k$ 重新算出。一次算几行，把这几行对 $dk$ 和 $dv$ 的贡献加上去，随即丢弃。行和也不成问题，它就是 $g_t\cdot o_t$。这正是 FlashAttention（Dao 等 2022，arXiv:2205.14135）的想法；在这一层中只需设置参数 `block`。

# %%
whole, blocks = mb.Attention(heads=1), mb.Attention(heads=1, block=32)  # both causal
rng = np.random.default_rng(0)
signals = [jnp.asarray(rng.normal(size=(1, 256, 16))) for _ in range(4)]


def by_hand(layer, q, k, v, g):
    """(o, (dq, dk, dv), what was kept for the way back besides q, k, v and o)"""
    o, saved = layer.net_input((), (q, k, v))
    return o, layer.transport((), saved, g), saved.kept


def by_vjp(q, k, v, g):
    o, pull = jax.vjp(partial(plain, causal=True), q, k, v)
    return o, pull(g)


# %%
fast = partial(jax.jit, static_argnums=0, compiler_options=QUICK)
o_jax, d_jax = by_vjp(*signals)
for name, layer in {"whole": whole, "in blocks": blocks}.items():
    o_layer, d_layer, kept = fast(by_hand)(layer, *signals)
    pairs = zip((o_layer, *d_layer), (o_jax, *d_jax), strict=True)
    error = max(jnp.abs(a - b).max() for a, b in pairs)
    size = sum(leaf.size for leaf in jax.tree.leaves(kept))
    print(f"{name:9}  keeps {size:6} numbers for T = 256; largest difference to jax.vjp {error:.0e}")
    assert error < 1e-13 and (size == 256) == (layer is blocks)

# %% [markdown]
# Equal numbers, and 256 of them kept. (Whole, it keeps less than $256^2$, because no row sees the words after it.) What
# the programs need in memory besides their inputs and outputs, XLA tells when it has compiled them:
#
# 结果相同，保留的却只有 256 个数。（不分块时也不到 $256^2$，因为每一行都看不到它之后的词。）除输入和输出之外，程序还需要多少临时内存，XLA 编译之后就会给出：

# %%
layers = {"by hand, whole": whole, "by hand, in blocks": blocks}
programs = {"jax.vjp": by_vjp} | {name: partial(by_hand, layer) for name, layer in layers.items()}
lengths, memory = (64, 256, 1024), {}
for name, program in programs.items():
    inputs = [[jax.ShapeDtypeStruct((1, T, 16), jnp.float32)] * 4 for T in lengths]
    compiled = [jax.jit(lambda *at, f=program: f(*at)[:2]).lower(*at).compile(QUICK) for at in inputs]
    memory[name] = [each.memory_analysis().temp_size_in_bytes / 1024 for each in compiled]
    print(f"{name:19}", *(f"T = {T}: {kib:6.0f} KiB   " for T, kib in zip(lengths, memory[name], strict=True)))
growth = {name: kib[2] / kib[1] for name, kib in memory.items()}
assert memory["by hand, in blocks"][2] < memory["jax.vjp"][2] / 8
assert growth["jax.vjp"] > 10 and growth["by hand, in blocks"] < 5

# %%
plt.figure(figsize=(6.4, 2.9))
for name, kib in memory.items():
    plt.loglog(lengths, kib, "o-", label=name)
plt.xticks(lengths, lengths), plt.minorticks_off()
plt.xlabel("T"), plt.ylabel("temporary memory, KiB"), plt.legend()
plt.show()

# %% [markdown]
# Four times as many words take JAX sixteen times the memory, $T^2$, but in blocks about four times. The layer without
# blocks needs less than half of JAX's: it keeps one array where JAX keeps more, and skips much of what the mask hides.
#
# 词数变为四倍，JAX 的内存变为十六倍，即 $T^2$；分块计算则大约是四倍。不分块的这一层用不到 JAX 的一半，因为它只保留一个数组，并且跳过了被掩码遮住的大部分。
#
# ## A small GPT 一个小 GPT
#
# Now put attention to work. `mb.gpt` is a decoder: letters enter, and at every position it predicts the next one. Its
# *residual stream* starts as the letter's embedding; in each block attention adds something to it, then a small network
# does. We teach it 24 sentences of one kind: who sees or asks whom, and then the same the other way round.
#
# 现在让注意力派上用场。`mb.gpt` 是一个解码器：输入字母，在每个位置预测下一个字母。它的**残差流**从字母的嵌入开始，在每一块中先由注意力、再由一个小网络往上加。我们教它 24 个同类的句子：谁看（sees）或者问（asks）谁，然后反过来再说一遍。

# %%
animals, verbs = ("cat", "dog", "pig", "hen"), ("sees", "asks")
sentences = [f"the {a} {do} a {b}, the {b} {do} a {a}." for a in animals for b in animals for do in verbs if a != b]
alphabet = sorted(set("".join(sentences)))


def letters(texts):
    """(x, y): the letters but the last, and the letters but the first, as numbers."""
    ids = jnp.array([[alphabet.index(letter) for letter in text] for text in texts])
    return ids[:, :-1], ids[:, 1:]


NET = mb.gpt(len(alphabet), d=16, heads=2, layers=2, length=38, recompute=False)
OBJECTIVE = mb.Objective(NET, mb.softmax_cross_entropy)
x, y = letters(sentences)
print(f"{len(sentences)} sentences of {len(sentences[0])} letters, such as\n{sentences[0]}\n{sentences[-1]}")


# %%
@jax.jit
def learned(params):
    """(parameters after 150 steps, J before each)"""
    adam = optax.adam(optax.cosine_decay_schedule(0.02, 150))

    def one(carry, _):
        params, state = carry
        J, gradients = mb.value_and_grad(OBJECTIVE)(params, x, y)
        updates, state = adam.update(gradients, state)
        return (optax.apply_updates(params, updates), state), J

    (params, _), values = jax.lax.scan(one, (params, adam.init(params)), length=150)
    return params, values


# %%
params, values = learned(NET.init(jax.random.key(0)))
print(f"J falls from {values[0]:.1f} to {values[-1]:.3f}; log 24 is {np.log(24):.3f}")
assert 0 < values[-1] - np.log(24) < 0.1

# %% [markdown]
# Less is impossible: there are 24 sentences, so nobody can guess the first animal (4), the verb (2) and the second
# animal (3). All that follows the comma has been said before, and the network has learned to copy it.
#
# 不可能更小了：24 个句子中，第一个动物（4 种）、动词（2 种）和第二个动物（3 种）谁也猜不到。逗号之后的一切前面都已说过，网络学会了照抄。
#
# ## Where delta comes from 误差项来自哪里
#
# At every position and after every addition the residual stream has a $\delta$: the derivative of the loss with respect
# to it. Take a sentence that breaks the rule at its last word, *hen* for *cat*, and first the loss of all letters
# (top), then that of the letter *h* alone (bottom). The label `ignored` switches the others off.
#
# 在每个位置、每次相加之后，残差流都有自己的 $\delta$，即损失对它的导数。取一个最后一个词违反规律的句子，该说 cat 却说了 hen。上图是所有字母的损失，下图只取字母 h 的损失，其余的用 `ignored` 这个标签关掉。

# %%
broken = "the cat sees a dog, the dog sees a hen."
one_x, one_y = letters([broken])
at = broken.index("hen") - 1  # the position that has to predict the h
only = jnp.where(jnp.arange(38)[None] == at, one_y, -1)
ONE_LETTER = mb.Objective(NET, mb.SoftmaxCrossEntropy(ignored=-1))


def stream(deltas):
    """(5, T): |delta| of the residual stream: at the embedding, then after attention and mlp of both blocks."""
    after_attention, after_mlp = (residual[-1] for residual in deltas[2])
    rows = deltas[1], after_attention[0], after_mlp[0], after_attention[1], after_mlp[1]
    return np.linalg.norm(jnp.stack(rows)[:, 0], axis=-1)


# %%
both = [(objective, params, one_x, labels) for objective, labels in ((OBJECTIVE, one_y), (ONE_LETTER, only))]
norms = [stream(fast(mb.backprop)(*problem).deltas) for problem in both]
from_jax = [stream(fast(reference.deltas)(*problem)) for problem in both]
for mine, theirs in zip(norms, from_jax, strict=True):
    print(f"|delta| from {mine.min():.1e} to {mine.max():.1e}, largest difference {abs(mine - theirs).max():.0e}")
    assert np.allclose(mine, theirs, rtol=1e-10, atol=1e-13)
assert np.all(norms[1][:, at + 1 :] == 0) and np.all(norms[1][-1, :at] == 0) and np.all(norms[0] > 0)

# %%
figure, axes = plt.subplots(2, 1, figsize=(7.6, 3.4))
for ax, values, title in zip(axes, norms, ("loss of all letters", "loss of the h alone"), strict=True):
    ax.set_facecolor("0.85")
    image = ax.imshow(np.log10(np.where(values > 0, values, np.nan)), vmin=-4, vmax=2, aspect="auto", origin="lower")
    ax.set_title(title, loc="left")
    ax.set(xticks=range(38), yticks=range(5))
    ax.set_xticklabels(broken[:-1].replace(" ", "_"), fontsize=8, family="monospace")
    ax.set_yticklabels(["embedding", "+ attention 1", "+ mlp 1", "+ attention 2", "+ mlp 2"], fontsize=8)
    ax.grid(False)
figure.colorbar(image, ax=axes, label=r"$\log_{10} \|\delta\|$", fraction=0.04)
plt.show()

# %%
at_embedding = norms[1][0]
print(f"|delta| at the embedding, of the loss of the h at position {at}:")
for t in np.argsort(-at_embedding)[:4]:
    print(f"position {t:2}  {broken[:t]}[{broken[t]}]  {at_embedding[t]:.1f}")

# %% [markdown]
# Top: the upper rows are bright at just four letters, the spaces before an animal or a verb that cannot be guessed, and
# the one before *hen*. Everywhere else the network is sure, and $\delta$ is small.
#
# Bottom, read downwards: above the second attention the loss of one letter has a $\delta$ at its own position alone.
# Attention then sends it to the positions it read from. Grey means exactly zero: no letter after the *h* was read, so
# none gets a $\delta$. That is the causal mask, seen from behind. A $P_{tj}$ of zero makes $dS_{tj}$ zero as well.
#
# 上图：上面几行只在四个字母处明亮，都是空格，后面是猜不到的动物或动词，最后一个在 hen 之前。其余各处网络都很有把握，$\delta$ 很小。
#
# 下图从上往下读：在第二次注意力之上，一个字母的损失只在它自己的位置有 $\delta$；经过注意力，$\delta$ 传到它读过的那些位置。灰色表示恰好为零：h 之后的字母没有被读过，所以都没有 $\delta$。这就是从反面看到的因果掩码：$P_{tj}$ 为零，$dS_{tj}$ 也为零。
#
# ## What surprises it 它对什么感到意外
#
# At the readout, the last dense layer, the gradient of one letter's loss is an outer product, $\delta_t a_t^\top$
# (B4), and its norm is $\|a_t\| \, \|\delta_t\|$. So every letter's norm can be read off one sweep. For a whole
# sentence the letters' products add up, and $\|\sum_t \delta_t a_t^\top\|^2$ is not the sum of their squares;
# `mb.squared_norms` finds it for every layer, and forms no sentence's gradient.
#
# 在最后的输出层，一个字母的损失的梯度是外积 $\delta_t a_t^\top$ (B4)，范数为 $\|a_t\|\,\|\delta_t\|$，因此一次反向传播就能读出每个字母的范数。对整个句子，各个字母的外积相加，和的范数平方不等于各自范数平方之和；`mb.squared_norms` 逐层求出它，而不必算出任何一个句子的梯度。

# %%
cases = {
    "as taught": "the cat sees a dog, the dog sees a cat.",
    "another animal": "the cat sees a dog, the dog sees a hen.",
    "another verb": "the cat sees a dog, the dog asks a cat.",
    "a slip": "the cat sees a dog, the dog sese a cat.",
    "itself": "the cat sees a cat, the cat sees a cat.",
}
x_cases, y_cases = letters(cases.values())
step = fast(mb.backprop)(OBJECTIVE, params, x_cases, y_cases)
by_letter = jnp.linalg.norm(step.trace[-2].a, axis=-1) * jnp.linalg.norm(step.deltas[-1], axis=-1)
by_layer = mb.squared_norms(NET, step.trace, step.deltas, by_layer=True)
by_sentence = mb.squared_norms(NET, step.trace, step.deltas)

# %%
losses = OBJECTIVE.loss.value(step.output, y_cases)
print("sentence           loss   gradient norm   two most surprising letters")
for n, (name, text) in enumerate(cases.items()):
    top = sorted(np.argsort(-by_letter[n])[:2])
    where = "   ".join(f"{text[t - 3 : t + 1]}[{text[t + 1]}]" for t in top)
    print(f"{name:16} {losses[n]:6.2f} {np.sqrt(by_sentence[n]):15.1f}   {where}")
assert np.argmin(by_sentence) == 0 and np.argmin(losses) == 0
assert np.argmax(by_letter[1]) == at and min(np.argsort(-by_letter[3])[:2]) == cases["a slip"].index("sese") + 1

# %%
figure, axes = plt.subplots(len(cases), 1, figsize=(7.2, 5.2), sharey=True)
for ax, norm, (name, text) in zip(axes, by_letter, cases.items(), strict=True):
    ax.bar(range(1, 39), norm, color="C1")
    ax.set_title(name, loc="left", fontsize=9, pad=2)
    ax.set(xticks=range(39), xlim=(-0.6, 38.6))
    ax.set_xticklabels(text.replace(" ", "_"), fontsize=8, family="monospace")
    ax.grid(axis="x", visible=False)
axes[2].set_ylabel(r"$\|a_t\| \, \|\delta_t\|$")
plt.show()

# %% [markdown]
# Each bar stands at the letter that was to be predicted. Three letters surprise in every sentence: nobody could know
# them. The others appear where a sentence leaves what was taught; after the slip it takes three letters to find back.
# And where in the network does a sentence pull? All layers with parameters, from below to above:
#
# 每根柱子立在所要预测的字母处。每个句子中都有三个字母出人意料，因为谁也不可能知道；其余的正是句子偏离所学之处，笔误（a slip）之后隔了三个字母才回到正轨。那么一个句子在网络的哪里用力？下图从低到高列出所有带参数的层：

# %%
block = ["norm", "q", "k", "v", "out", "norm", "gate", "up", "down"]
names = ["embedding", "positions", *(f"{name} {b}" for b in (1, 2) for name in block), "norm", "readout"]
first, positions, blocks_of_both, last_norm, readout = by_layer
inside = [leaf for leaf in jax.tree.leaves(blocks_of_both) if np.any(leaf)]  # attention and product have no parameters
table = np.sqrt(jnp.stack([first, positions, *(leaf[b] for b in (0, 1) for leaf in inside), last_norm, readout]))

figure, ax = plt.subplots(figsize=(7.2, 2.9))
image = ax.imshow(np.log10(table.T), aspect="auto", cmap="viridis")
ax.set(xticks=range(len(names)), yticks=range(len(cases)), yticklabels=cases, frame_on=False)
ax.set_xticklabels(names, rotation=60, ha="right", fontsize=8), ax.grid(False)
figure.colorbar(image, label=r"$\log_{10}$ gradient norm")
plt.show()

# %% [markdown]
# The surprising sentences pull at the embeddings and at the first block's values (v, out): at what is passed on, more
# than at where to look (q, k). The same norms by `jax.grad`:
#
# 出人意料的句子主要拉扯嵌入和第一块的值（v、out），即传递什么内容，而不是看向哪里（q、k）。用 `jax.grad` 核对这些范数：


# %%
def by_grad(params):
    """The norms of every sentence, and of every letter of the slip at the readout, by vmap of jax.grad."""
    gradients = reference.per_example_gradients(OBJECTIVE, params, x_cases, y_cases)
    sentence = sum(jnp.sum(leaf**2, axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(gradients))
    labels = jnp.where(jnp.eye(38, dtype=bool), y_cases[3], -1)  # one letter each
    of_letters = reference.per_example_gradients(ONE_LETTER, params, jnp.tile(x_cases[3], (38, 1)), labels)
    return sentence, jnp.linalg.norm(of_letters[-1].W, axis=(1, 2))


sentence, letter = jax.jit(by_grad, compiler_options=QUICK)(params)
print("largest relative difference:", f"{np.abs(by_sentence / sentence - 1).max():.0e}")
print("and of the slip's letters:  ", f"{np.abs(by_letter[3] / letter - 1).max():.0e}")
assert np.allclose(by_sentence, sentence, rtol=1e-10) and np.allclose(by_letter[3], letter, rtol=1e-8)
assert np.allclose(np.sum(table**2, axis=0), by_sentence, rtol=1e-12)

# %% [markdown]
# ## A fault in dS 在 dS 中埋一个错误
#
# The row sum is easily forgotten: $dS = P \odot dP$ has the right shape, and $dv$ does not notice. Here is an attention
# that forgets it. The layer takes the row sum from $o$, so it is enough to hand zeros in place of $o$.
#
# 行和很容易忘记：$dS = P \odot dP$ 形状正确，$dv$ 也毫无异样。下面的注意力就忘了它。这一层由 $o$ 求行和，所以只要把 $o$ 换成零就行。


# %%
class Forgetful(mb.Attention):
    def transport(self, params, saved, delta):
        return super().transport(params, saved._replace(o=jnp.zeros_like(saved.o)), delta)


forgets = Forgetful(heads=1, causal=False)
dq, dk, dv = forgets.transport((), forgets.net_input((), (q[None], k[None], v[None]))[1], g[None])
for name, right, wrong in zip(("dq", "dk", "dv"), ours, (dq, dk, dv), strict=True):
    print(f"{name}: largest difference {jnp.abs(wrong[0] - right).max():.2f}")
assert jnp.allclose(dq[0], P * dP @ k / 3**0.5) and jnp.allclose(dv[0], ours[2]) and not jnp.allclose(dq[0], ours[0])

# %% [markdown]
# `reference.check_layer` takes a layer's methods one by one:
#
# `reference.check_layer` 逐个检查一层的各个方法：

# %%
by_method = reference.check_layer(forgets, (), tuple(rng.normal(size=(2, 3, 4)) for _ in range(3)))
print(by_method.summary())
assert by_method.verdict == "fail" and {row.path[:12] for row in by_method.failures} >= {"transport[0]", "transport[1]"}
assert not any(row.path.startswith(("net_input", "pushforward", "transport[2]")) for row in by_method.failures)

# %% [markdown]
# The method is `transport`, and the inputs are q (`[0]`) and k (`[1]`); v, the forward pass and `pushforward` are
# right. Inside a network, `reference.check` names the place. Here is one block of attention, with the right layer and
# with the forgetful one:
#
# 出错的方法是 `transport`，出错的输入是 q（`[0]`）和 k（`[1]`）；v、前向传播和 `pushforward` 都正确。如果这一层在网络里面，`reference.check` 会指出它的位置。下面是一块注意力，一次用正确的层，一次用健忘的层：


# %%
def one_block(attention):
    q_k_v = mb.Parallel(tuple(mb.Dense(8, 8, bias=False) for _ in range(3)))
    attended = mb.Residual(mb.Serial((mb.RMSNorm(8), q_k_v, attention, mb.Dense(8, 8, bias=False))))
    net = mb.Serial((mb.Embedding(len(alphabet), 8), attended, mb.Dense(8, len(alphabet), bias=False)))
    return mb.Objective(net, mb.softmax_cross_entropy)


reports = {}
for attention in (mb.Attention(heads=2), Forgetful(heads=2)):
    objective = one_block(attention)
    at_start = objective.net.init(jax.random.key(1))
    report = reference.check(objective, at_start, x[:2, :12], y[:2, :12], compiler_options=QUICK)
    print(f"--- {type(attention).__name__}\n{report.summary()}\n")
    reports[type(attention)] = report

# %%
faults = [row for row in reports[Forgetful].failures if row.kind == "equation"]
print(*(f"{row.equation} of layer {row.layer}: {row.path} has another delta" for row in faults), sep="\n")
assert reports[mb.Attention].passed and [row.path for row in faults] == ["deltas[1][1][1]", "deltas[1][1][0]"]

# %% [markdown]
# Layers are counted from the embedding: 2 is the norm, 3 to 5 are q, k and v, and 6 is the attention, whose transport
# is named. Of the three only q and k got a wrong $\delta$. End to end everything below is wrong as well, but every
# equation below was applied rightly to what it received.
#
# 层从嵌入数起：2 是归一化，3 到 5 是 q、k、v，6 是注意力，报告指出的正是它的 transport。三者中只有 q 和 k 得到了错误的 $\delta$。端到端地看，再往下也全错了，但下面的每个公式对它收到的值都算得正确。
#
# ## The check 验证
#
# The trained GPT, every layer by itself and all of it end to end; and once more with attention in blocks, which has the
# same parameters and must have the same gradient.
#
# 最后验证训练好的 GPT：逐层单独检查，再从头到尾检查；然后换成分块计算的注意力，参数相同，梯度也必须相同。

# %%
report = reference.check(OBJECTIVE, params, x[:2], y[:2], compiler_options=QUICK)
print(report.summary())
report.raise_if_failed()

in_blocks = mb.Objective(mb.gpt(len(alphabet), d=16, heads=2, layers=2, length=38, block=8), mb.softmax_cross_entropy)
gradients = fast(mb.backprop)(in_blocks, params, x_cases, y_cases).gradients
pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(step.gradients), strict=True)
error = max(jnp.abs(a - b).max() / jnp.abs(b).max() for a, b in pairs)
print(f"in blocks of 8: largest difference {error:.0e} of the largest entry")
assert error < 1e-12
