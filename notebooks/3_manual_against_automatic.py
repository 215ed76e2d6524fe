# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. Manual against automatic 手写与自动求导
#
# The gradient written by hand and the one by `jax.grad` are two programs for the same numbers. This notebook puts
# them side by side, entry by entry, asks how far two right answers may differ, and then breaks the manual one on
# purpose to see that the comparison notices, and says which equation of which layer is wrong. At the end you will
# know what "equal" means in float64 and in float32, and how small a fault would still be seen.
#
# 手写的梯度和 `jax.grad` 的梯度，是计算同一组数的两个程序。本文把两者逐个元素对照，讨论两个正确答案之间可以相差多少，然后故意改坏手写的一方，看对照能否发现，并指出是哪一层的哪个公式出了错。读完之后，你会知道在 float64 和 float32 中“相等”是什么意思，以及多小的错误仍能被发现。

# %%
import re
from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import manual_backprop as mb
import reference
from reference import xla
from reference.catalogue import data

QUICK = xla.quick()  # options for XLA: everything here runs once
jax.config.update("jax_enable_x64", True)
plt.style.use("pictures.mplstyle")

# %% [markdown]
# ## One network, two programs 一个网络，两个程序
#
# Sixty-four handwritten digits, three layers, softmax cross-entropy and a regulariser. The two hidden layers have the
# same width, so that a mistake in the second layer's transpose keeps every shape. No parameter is zero: a zero can
# hide a fault.
#
# 64 个手写数字，三层网络，softmax 交叉熵，带正则化项。两个隐藏层同宽，所以漏掉转置也不会引起形状错误。参数都不为零，因为零可能掩盖错误。

# %%
digits = data.raw("digits")
x, y = jnp.asarray(digits.x[:64] / 16), jnp.asarray(digits.y[:64])
net = mb.mlp((64, 24, 24, 10), activation="tanh")
objective = mb.Objective(net, mb.softmax_cross_entropy, mb.Frobenius(1e-3))
rng = np.random.default_rng(0)
params = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape), net.init(jax.random.key(0)))

programs = {"by hand": mb.value_and_grad(objective), "jax.grad": reference.value_and_grad(objective)}
compiled = {name: jax.jit(f).lower(params, x, y).compile(QUICK) for name, f in programs.items()}
(J_manual, manual), (J_automatic, automatic) = (f(params, x, y) for f in compiled.values())
print(f"J by hand      {J_manual:.17f}\nJ by jax.grad  {J_automatic:.17f}")
assert abs(J_manual - J_automatic) < 1e-14

# %% [markdown]
# `mb.value_and_grad` is forward, backward, gradients, and calls no automatic differentiation.
# `reference.value_and_grad` is `jax.value_and_grad` of an objective that is written a second time, with `jax.nn` and
# optax: a wrong forward formula would show too, because none is shared.
#
# 前者就是前向传播、反向传播、求梯度三个步骤，不调用自动求导；后者对另行编写的目标函数使用 `jax.value_and_grad`。两边不共用任何前向公式，所以前向传播写错了也会暴露。

# %%
names = [f"dJ/d{kind}{l}" for l in (1, 2, 3) for kind in ("W", "b")]
ours, theirs = ([np.asarray(leaf) for leaf in jax.tree.leaves(tree)] for tree in (manual, automatic))
print("gradient    entries   largest     max |difference|   exactly equal")
for name, a, b in zip(names, ours, theirs, strict=True):
    same = 100 * np.mean(a == b)
    print(f"{name:10s} {a.size:8d}   {abs(b).max():.1e}     {abs(a - b).max():.1e}         {same:5.1f} %")
    assert abs(a - b).max() <= 1e-14 * abs(b).max()

# %% [markdown]
# The unit roundoff of float64 is about $10^{-16}$, and the largest difference is that far below the largest entry.
# Many entries agree in every bit.
#
# float64 的舍入单位约为 $10^{-16}$，最大的差别相对于最大元素也只有这个量级，许多元素每一位都相同。
#
# ## A picture of agreement 一致的样子
#
# First the usual picture: each entry by hand against the same entry by `jax.grad`. Every point should lie on $y = x$.
#
# 先看常见的散点图：横轴是自动求导的结果，纵轴是手写的结果，所有的点都应落在 $y = x$ 上。

# %%
figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.7))
for l, ax in enumerate(axes):
    a, b = (np.concatenate([leaves[2 * l].ravel(), leaves[2 * l + 1]]) for leaves in (ours, theirs))
    limit = 1.1 * abs(b).max()
    ax.plot([-limit, limit], [-limit, limit], color="0.6", lw=1, label="y = x")
    ax.plot(b, a, ".", ms=3, label=f"{a.size} entries")
    ax.set(title=f"layer {l + 1}", xlabel="jax.grad", aspect="equal", xticks=[-0.05, 0, 0.05], yticks=[-0.05, 0, 0.05])
    ax.legend(loc="upper left", handletextpad=0.3, borderpad=0)
axes[0].set_ylabel("by hand")
plt.show()

# %% [markdown]
# Such a picture is easy to trust and shows little: a fault of one percent would still look like a line. The logarithm
# of the difference shows more. Below, each entry of $\partial J/\partial W^{(l)}$, with $\partial J/\partial b^{(l)}$
# as the last column; the colour range is fixed from $10^{-18}$ to $10^{-6}$, and grey means that the two are equal in
# every bit.
#
# 这样的图容易让人放心，却说明不了多少：百分之一的错误看上去仍是一条直线。差的对数能说明更多。下图中每格是一个元素，最后一列是偏置的梯度；颜色范围固定为 $10^{-18}$ 到 $10^{-6}$，灰色表示两者每一位都相同。


# %%
def draw_difference(ax, l, by_hand):
    a, b = (np.c_[tree[l].W, np.full(len(tree[l].b), np.nan), tree[l].b] for tree in (by_hand, automatic))
    difference = np.abs(a - b)
    equal = np.where(difference == 0, 0.75, np.nan)
    ax.imshow(equal, cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="none")
    logs = np.log10(np.where(difference > 0, difference, np.nan))
    ax.set(xticks=[], yticks=[], frame_on=False)
    return ax.imshow(logs, cmap="inferno", vmin=-18, vmax=-6, aspect="auto", interpolation="none")


# %%
figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.5), width_ratios=[64, 26, 26])
for l, ax in enumerate(axes):
    image = draw_difference(ax, l, manual)
    ax.set_title(f"layer {l + 1}")
figure.colorbar(image, ax=axes, label=r"$\log_{10}$ |manual $-$ auto|", fraction=0.05, ticks=[-18, -15, -12, -9, -6])
plt.show()

# %% [markdown]
# Nothing but rounding. The grey columns of layer 1 are pixels that are blank in all 64 pictures: there the gradient
# is $\lambda W$ alone. The error terms agree just so: `jax.grad` has them too, as the derivative with respect to a
# zero that is added to every $z$.
#
# 只有舍入误差。第 1 层的灰色竖条对应在 64 张图中始终空白的像素，那里的梯度只有 $\lambda W$。误差项也同样一致：给每个净输入加上一个零，对这个零求导，`jax.grad` 也能得到误差项。

# %%
step = mb.backprop(objective, params, x, y)
by_probes = jax.jit(reference.deltas, static_argnums=0, compiler_options=QUICK)(objective, params, x, y)
for l, (a, b) in enumerate(zip(step.deltas, by_probes, strict=True), start=1):
    print(f"delta{l}: {a.shape[0]} examples x {a.shape[1]} neurons, max |difference| {jnp.abs(a - b).max():.1e}")
    assert jnp.abs(a - b).max() <= 1e-14 * jnp.abs(b).max()

# %% [markdown]
# ## What each program does 两个程序各做了什么
#
# `jax.make_jaxpr` writes a function down as a list of primitive operations. Counted for both, they are of the same
# kind and about as many. That is no accident: automatic differentiation derives the program that one writes by hand.
#
# `jax.make_jaxpr` 把函数写成基本运算的列表。两边的运算种类相同，数量相近。这不是巧合：自动求导推导出来的，正是手写的那个程序。


# %%
def primitives(jaxpr):
    found = Counter()
    for equation in jaxpr.eqns:
        inner = [value for value in jax.tree.leaves(list(equation.params.values())) if hasattr(value, "eqns")]
        for each in inner:
            found += primitives(getattr(each, "jaxpr", each))
        if not inner:
            found[equation.primitive.name] += 1
    return found


counts = {name: primitives(jax.make_jaxpr(f)(params, x, y).jaxpr) for name, f in programs.items()}
print({name: f"{count.total()} operations" for name, count in counts.items()})
assert 0.7 < counts["by hand"].total() / counts["jax.grad"].total() < 1.4

# %%
kinds = [kind for kind, n in (counts["by hand"] + counts["jax.grad"]).most_common() if n > 3]
figure, ax = plt.subplots(figsize=(6.4, 3.4))
for offset, (name, count) in zip((-0.2, 0.2), counts.items(), strict=True):
    ax.barh(np.arange(len(kinds)) + offset, [count[kind] for kind in kinds], 0.38, label=name)
ax.set(yticks=range(len(kinds)), yticklabels=kinds, xlabel="number of operations")
ax.tick_params(axis="y", labelsize=8)
ax.invert_yaxis()
ax.grid(axis="y", visible=False)
ax.legend()
plt.show()

# %% [markdown]
# What costs time is matrix products. Our network of 3 layers needs 3 of them forward, 3 for the gradients of the
# weights (B4), and 2 to bring $\delta$ down (B2): 8 in all, and $3k - 1$ for $k$ layers. The compiler drops what nobody
# uses, and both programs are left with just these.
#
# 真正费时的是矩阵乘法。我们的 3 层网络前向需要 3 次，权重的梯度 (B4) 需要 3 次，误差项向下传递 (B2) 需要 2 次，共 8 次；$k$ 层网络则需要 $3k - 1$ 次。编译器删去无人使用的计算之后，两个程序剩下的正好是这些。

# %%
products = {name: len(re.findall(r" dot\(", program.as_text())) for name, program in compiled.items()}
print("matrix products after compiling:", products)
assert products["by hand"] == products["jax.grad"] == 3 + 3 + 2

# %% [markdown]
# ## How far apart may two right answers be? 两个正确答案可以相差多少？
#
# "Equal to $10^{-15}$" is a statement about float64 alone. In float32 the same two programs differ hundreds of
# millions of times as much and are as right. So the harness measures, for every entry, how far rounding can move it,
# and states each error in units of that tolerance: below 1 it is rounding, above 1 it is a fault, in any precision.
#
# “差别不超过 $10^{-15}$”只对 float64 有意义。在 float32 中，同样两个程序的差别要大几亿倍，却同样正确。因此验证程序逐个元素测量舍入能造成多大偏差，并以这个容差为单位表示误差：小于 1 是舍入，大于 1 是错误，在任何精度下都是如此。

# %%
judges, reports = {}, {}
for dtype in ("float64", "float32"):
    judges[dtype] = judge = reference.prepare(objective, params, x, y, dtype=dtype)
    in_dtype = mb.backprop(objective, *judge.inputs)
    reports[dtype] = judge.report(in_dtype)
    print(reports[dtype].summary())
    assert reports[dtype].passed
largest = [max(r.relative for r in report.rows if "gradients" in r.path) for report in reports.values()]
assert 1e8 < largest[1] / largest[0] < 1e10

# %%
figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.2), sharey=True)
shown = [[row for row in report.rows if row.path.startswith(("deltas", "gradients"))] for report in reports.values()]
for dtype, rows in zip(reports, shown, strict=True):
    axes[0].semilogx([max(row.relative, 1e-19) for row in rows], range(len(rows)), "o", ms=4, label=dtype)
    axes[1].semilogx([max(row.used, 1e-6) for row in rows], range(len(rows)), "o", ms=4, label=dtype)
axes[1].axvline(1, color="0.4", ls="--", lw=1.2)
names = [f"{row.path} {row.equation or 'end to end'}" for row in shown[0]]
axes[0].set(yticks=range(len(names)), xlabel="relative error", xlim=(5e-20, 1e-4))
axes[0].set_yticklabels(names, fontsize=7)
axes[1].set(xlabel="error in units of its tolerance", xlim=(5e-7, 20))
axes[0].legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=2)
plt.show()

# %% [markdown]
# Left, the raw errors: two clouds, nine powers of ten apart. Right, the same errors in units of their tolerance: all
# are left of the line. Points at the very left are errors of exactly zero.
#
# 左图是原始误差，两种精度相隔九个数量级；右图以容差为单位，全部在虚线左侧。最左端的点表示误差恰好为零。
#
# ## Broken on purpose 故意改坏
#
# A check that never fails shows nothing. Here are four mistakes that everybody makes once, each with all the numbers
# that follow from it: $W\delta$ in the place of $W^\top\delta$, $f'$ of the wrong layer (both in (B2) at layer 1, and
# no shape complains), a forgotten $\lambda W$ (B6), and a sum in the place of the mean (B4).
#
# 从不报错的检查说明不了问题。下面是四种常见错误：漏掉转置，用错了层的 $f'$（都在第 1 层的 (B2)，形状不会报错），漏掉 $\lambda W$ (B6)，该取平均时求了和，即漏掉 $1/N$ (B4)。每种错误都带着它引起的全部后果。


# %%
def with_delta1(delta):  # a step in which delta1 is wrong, and so is all that is computed from it
    deltas = (delta, *step.deltas[1:])
    gradients = objective.add_penalty_gradient(mb.gradients(net, step.trace, deltas), params, None)
    return replace(step, deltas=deltas, gradients=gradients, d_x=delta @ params[0].W)


# %%
slopes = [1 - layer.a**2 for layer in step.trace]
loss_alone = mb.gradients(net, step.trace, step.deltas)
summed = objective.add_penalty_gradient(jax.tree.map(lambda g: 64 * g, loss_alone), params, None)
broken = {
    "W for W transposed": with_delta1(slopes[0] * (step.deltas[1] @ params[1].W.T)),
    "f' of the wrong layer": with_delta1(slopes[1] * (step.deltas[1] @ params[1].W)),
    "lambda W forgotten": replace(step, gradients=loss_alone),
    "1/N forgotten": replace(step, gradients=summed),
}

# %%
for name, wrong in broken.items():
    report = judges["float64"].report(wrong)
    print(f"--- {name}\n{report.summary()}\n")
    assert report.verdict == "fail"

# %% [markdown]
# Each report names the equation, the layer, the entry and a probable cause. It can, because every equation is also
# checked *by itself*: recomputed from the very values that entered it. So a wrong $\delta^{(1)}$ fails (B2) at layer
# 1 and nowhere else, although end to end everything below it is wrong as well.
#
# 每份报告都指出了公式、层、元素和可能的原因。这是因为每个公式还单独检查一遍：用实际进入它的值重新计算。所以 $\delta^{(1)}$ 错了，只有第 1 层的 (B2) 不通过；而端到端地看，由它算出的一切都错了。

# %%
planted = {"W for W transposed": ("(B2)", 1), "f' of the wrong layer": ("(B2)", 1)}
for name, wrong in broken.items():
    failures = judges["float64"].report(wrong).failures
    equations = [f"{row.equation} of layer {row.layer}" for row in failures if row.kind == "equation"]
    ends = [row.path for row in failures if row.kind == "end to end"]
    print(f"--- {name}\nequations that fail: {', '.join(equations)}")
    print(f"{len(ends)} arrays wrong end to end: {', '.join(ends)}\n")
    assert (failures[0].equation, failures[0].layer) == planted.get(name, ("(B4)", 1))

# %% [markdown]
# The heat maps of before, with the same colours, show where each fault is felt.
#
# 用与前面相同的颜色，可以看到每种错误波及哪里。

# %%
figure, axes = plt.subplots(4, 3, figsize=(7.2, 5.2), width_ratios=[64, 26, 26])
for row, (name, wrong) in zip(axes, broken.items(), strict=True):
    for l, ax in enumerate(row):
        image = draw_difference(ax, l, wrong.gradients)
    row[0].set_title(name, loc="left", fontsize=10)
figure.colorbar(image, ax=axes, label=r"$\log_{10}$ |manual $-$ auto|", fraction=0.05, extend="max")
plt.show()

# %% [markdown]
# ## How small a fault would be seen? 多小的错误能被发现？
#
# Multiply $\partial J/\partial W^{(2)}$ by $1 + \varepsilon$ and let $\varepsilon$ shrink. Where the curve crosses 1
# the check goes blind. Each row of a report states that point beforehand, under *would see* (dotted).
#
# 把 $\partial J/\partial W^{(2)}$ 乘以 $1 + \varepsilon$，再让 $\varepsilon$ 逐渐变小。曲线降到 1 以下，检查就看不见了。报告的每一行都事先给出了这个界限，即 would see 一栏（点线）。

# %%
faults, seen = 10.0 ** np.arange(-16, 0.1, 0.5), {}
for dtype, judge in judges.items():
    right = mb.backprop(objective, *judge.inputs)
    W2, seen[dtype] = np.asarray(right.gradients[1].W, np.float64), []
    for fault in faults:
        wrong = replace(right.gradients[1], W=W2 * (1 + fault))
        report = judge.report(replace(right, gradients=(right.gradients[0], wrong, right.gradients[2])))
        seen[dtype].append(max(row.used for row in report.rows if row.path == "gradients[1].W"))

# %%
figure, ax = plt.subplots(figsize=(6.4, 3.0))
for (dtype, used), colour in zip(seen.items(), ("C0", "C1"), strict=True):
    would_see = min(row.power for row in reports[dtype].rows if row.path == "gradients[1].W")
    ax.loglog(faults, used, "o-", ms=4, color=colour, label=dtype)
    ax.axvline(would_see, color=colour, ls=":", lw=1.6)
    smallest = min(fault for fault, u in zip(faults, used, strict=True) if u > 1)
    print(f"{dtype}: smallest fault seen {smallest:.1e}, stated beforehand: would see {would_see:.1e}")
    assert smallest < {"float64": 1e-13, "float32": 1e-5}[dtype] and smallest < 10 * would_see
ax.axhline(1, color="0.4", ls="--", lw=1.2)
ax.set(xlabel=r"planted fault $\varepsilon$", ylabel="error / tolerance")
ax.legend()
plt.show()

# %% [markdown]
# In float64 a fault of one part in $10^{13}$ is seen, in float32 one of one part in $10^{5}$.
#
# 在 float64 中能发现 $10^{-13}$ 的相对错误，在 float32 中能发现 $10^{-5}$ 的相对错误。
#
# ## The check 验证
#
# All of the above in two lines, as one would write them in a test. It compiles the step under test, proves every
# equation by itself and every number end to end, and raises if one differs.
#
# 以上全部内容在测试中只需两行：逐个公式、逐个数值验证，任何一处不符就会报错。

# %%
report = reference.check(objective, params, x, y, compiler_options=QUICK)
report.raise_if_failed()
report  # print(report) lists every comparison
