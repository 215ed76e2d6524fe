# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 7. Your own custom_vjp 你自己的 custom_vjp
#
# `jax.custom_vjp` lets you replace what JAX would derive by a backward rule of your own: faster, or steadier, or
# sparing memory. Nothing in JAX tells you that the rule is right. This notebook writes one for a dense layer,
# proves it, breaks it in five ways, asks how good a check is at seeing such faults, and puts the check into pytest.
# At the end you will have a recipe for any rule that you write by hand.
#
# `jax.custom_vjp` 允许用自己写的反向规则代替 JAX 推导的规则，或者更快，或者更稳定，或者更省内存；但 JAX 不会告诉你规则写得对不对。本文为一个全连接层写一个规则，先验证它，再用五种方式改坏它，然后衡量一个检查发现错误的能力，最后把检查写进 pytest。读完之后，你会得到一套适用于任何手写规则的做法。

# %%
import inspect
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import reference

jax.config.update("jax_enable_x64", True)
plt.style.use("pictures.mplstyle")

# %% [markdown]
# ## A rule for one layer 为一层写反向规则
#
# The layer is (F1) and (F2): $a = \tanh(W a_{\text{in}} + b)$ for every row of a batch. The rule receives
# $g = \partial L/\partial a$ ($L$ is the loss) and returns what notebook 2 derives: $\delta = f'(z) \odot g$ as in (B1)
# and (B2), then $\delta a_{\text{in}}^\top$ (B4), $\delta$ (B3), each summed over the rows, and $W^\top \delta$ for the
# layer below.
#
# 这一层就是 (F1) 和 (F2)，对一批样本的每一行计算。规则收到损失 $L$ 对活性值的导数 $g$，返回第 2 篇推导出的各项：先如 (B1) 和 (B2) 求误差项 $\delta$，再求权重矩阵的梯度 (B4) 和偏置的梯度 (B3)，各自对所有行求和，以及传给下一层（靠近输入的一层）的 $W^\top\delta$。


# %%
def layer(W, b, a_in):
    return jnp.tanh(a_in @ W.T + b)


def forward(W, b, a_in):
    a = layer(W, b, a_in)
    return a, (W, a_in, a)


def backward(saved, g):
    W, a_in, a = saved
    delta = g * (1 - a**2)
    return delta.T @ a_in, delta.sum(axis=0), delta @ W


# %%
def with_rule(forward, backward):
    f = jax.custom_vjp(layer)
    f.defvjp(forward, backward)
    return f


mine = with_rule(forward, backward)
rng = np.random.default_rng(0)
W, b, a_in = rng.normal(size=(4, 4)), rng.normal(size=4), rng.normal(size=(5, 4))
by_rule = jax.grad(lambda W: mine(W, b, a_in).sum())(W)
derived = jax.grad(lambda W: layer(W, b, a_in).sum())(W)
print("largest difference in dL/dW:", f"{jnp.abs(by_rule - derived).max():.0e}")
assert jnp.allclose(by_rule, derived, rtol=1e-13)

# %% [markdown]
# $W$ is square and not symmetric, $b$ is not zero, and there are several rows. A special point hides faults: with
# $W = W^\top$ a forgotten transpose is invisible, with $b = 0$ so is a wrong bias.
#
# 这里 $W$ 是方阵但不对称，$b$ 不为零，样本不止一个。特殊的取值会掩盖错误，例如 $W$ 对称时看不出漏掉的转置，$b=0$ 时看不出偏置的错误。
#
# ## Prove it 验证
#
# Agreement of one gradient at one cotangent is one number's worth of evidence. `reference.check_vjp` pulls random
# cotangents back through the rule and through the plain function, compares every entry with a measured tolerance, and
# checks the promises that a rule makes: types, linearity in $g$, zero to zero, the same answer under jit and vmap,
# and for one argument alone.
#
# 只在一个方向上比较一个梯度，证据很有限。`check_vjp` 用随机的余切向量同时通过你的规则和原函数，逐个元素比较，并检查规则应当遵守的约定：类型、对 $g$ 的线性、零映到零、在 jit 与 vmap 下结果相同等。

# %%
report = reference.check_vjp(mine, W, b, a_in)
print(report)
assert report.passed and len(report.rows) > 15

# %% [markdown]
# ## Break it 改坏它
#
# Five faults, all of them easy to make: no $f'$ at all; $W$ for $W^\top$; the bias averaged over the rows; `None` for
# the bias, which JAX silently takes for zero; and $g$ clipped, which is no longer linear.
#
# 五种容易犯的错误：漏掉 $f'$；漏掉转置；偏置取了平均；偏置返回 `None`（JAX 默默当作零）；对 $g$ 做截断，规则不再是线性的。

# %%
broken = {
    "f' forgotten": lambda s, g: (g.T @ s[1], g.sum(axis=0), g @ s[0]),
    "W not transposed": lambda s, g: (*backward(s, g)[:2], (g * (1 - s[2] ** 2)) @ s[0].T),
    "mean for sum": lambda s, g: (backward(s, g)[0], backward(s, g)[1] / len(g), backward(s, g)[2]),
    "None for db": lambda s, g: (backward(s, g)[0], None, backward(s, g)[2]),
    "g clipped": lambda s, g: backward(s, jnp.clip(g, -1, 1)),
}

# %%
reports = {}
for name, rule in broken.items():
    reports[name] = reference.check_vjp(with_rule(forward, rule), W, b, a_in, transforms="eager")
    print(f"--- {name}\n{reports[name].summary().rpartition('  to see this again:')[0]}")
    assert reports[name].verdict == "fail"

# %% [markdown]
# Which rows of the report (dark) see which fault? Each fault leaves its own fingerprint. A wrong $\delta$ is wrong in
# all three results; a wrong transpose only in $a_{\text{in}}$'s; clipping is caught twice, as a wrong number and as a
# rule that is not linear.
#
# 每种错误都留下不同的痕迹（深色表示不通过）：$\delta$ 错了，三个结果都错；漏掉转置，只有传给前一层的导数错；截断则既表现为数值错误，也表现为不再线性。

# %%
paths = [row.path for row in reports["g clipped"].rows]
failed = [{row.path for row in report.failures} for report in reports.values()]
table = np.array([[path in each for each in failed] for path in paths])
figure, ax = plt.subplots(figsize=(6.4, 3.8))
ax.imshow(table, cmap="Oranges", vmin=-0.05, vmax=1.5, aspect="auto")
ax.vlines(np.arange(0.5, len(broken) - 1), -0.5, len(paths) - 0.5, color="white")
ax.hlines(np.arange(0.5, len(paths) - 1), -0.5, len(broken) - 0.5, color="white")
ax.grid(False)
ax.set(xticks=range(len(broken)), yticks=range(len(paths)))
ax.set_xticklabels(broken, rotation=20, ha="right", fontsize=8)
ax.set_yticklabels([path.replace("linear in the cotangent", "linear") for path in paths], fontsize=8)
plt.show()

# %% [markdown]
# ## How good is a check? 检查本身有多可靠？
#
# Suppose you wrote a check yourself: compare with JAX at one cotangent, two digits are enough. It sees all five
# faults above. Is it a good check?
#
# 假设你自己写了一个检查：在一个方向上与 JAX 比较，相对误差 1% 以内算通过。上面五种错误它都能发现。这样的检查够好吗？

# %%
g, saved = rng.normal(size=(5, 4)), forward(W, b, a_in)[1]
expected = jax.vjp(layer, W, b, a_in)[1](g)


def right_shapes(rule):
    return all(jnp.shape(ours) == theirs.shape for ours, theirs in zip(rule(saved, g), expected, strict=True))


def two_digits(rule):
    pairs = zip(rule(saved, g), expected, strict=True)
    return all(ours is not None and jnp.allclose(ours, theirs, rtol=1e-2) for ours, theirs in pairs)


assert two_digits(backward) and not any(two_digits(rule) for rule in broken.values())

# %% [markdown]
# Five faults of our own choosing prove little. `reference.mutation_score` breaks *every operation* of the rule in
# every way that suits it, one at a time: sign flipped, a factor or an addend dropped, a transpose dropped, one
# element zeroed, the result off by a factor $1 + 10^{-6}$. The share of these mutants that the check kills is its
# score.
#
# 自己挑选的五种错误说明不了多少。变异测试逐个改坏规则中的**每一个运算**：改变符号，丢掉一项，漏掉转置，一个元素置零，结果偏离百万分之一，等等。被检查发现的比例就是它的得分。


# %%
def two_digits_then_ours(rule):  # ours judges what the other lets pass
    return two_digits(rule) and reference.check_vjp(with_rule(forward, rule), W, b, a_in, transforms="eager").passed


checks = {"shapes alone": right_shapes, "two digits": two_digits, "two digits, then check_vjp": two_digits_then_ours}
scores = {name: reference.mutation_score(backward, check, saved, g) for name, check in checks.items()}
for name, score in scores.items():
    print(f"{name:27s}{score.headline()}")
assert scores["two digits, then check_vjp"].score == 1 and scores["two digits"].score < 0.9

# %% [markdown]
# The survivors say what the check is blind to, line by line. This one misses everything that is small, and one zeroed
# element that happens to matter little.
#
# 存活的变异体逐行说明检查看不见什么：凡是小的误差都漏掉了，还漏掉了一个恰好影响不大的元素被置零的错误。

# %%
for mutant in scores["two digits"].survivors:
    print(f"{mutant.primitive:12s} {mutant.what:24s} in: {mutant.code}")
assert any("zeroed" in mutant.what for mutant in scores["two digits"].survivors)

# %%
killed = np.array([score.killed for score in scores.values()])
survived = np.array([len(score.survivors) for score in scores.values()])
figure, ax = plt.subplots(figsize=(6.4, 1.9))
ax.barh(list(scores), killed, color="C2", label="killed")
ax.barh(list(scores), survived, left=killed, color="C1", label="survived")
ax.set(xlabel="mutants of the rule")
ax.grid(axis="y", visible=False)
ax.invert_yaxis()
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# A score also judges the *point*. At $W = I$, $b = 0$ and $a_{\text{in}} = 0$ many mutants give the right numbers by
# accident: they are counted as *unchanged*, and no check whatever could see them there.
#
# 得分还能评判**取值点**。在 $W = I$、$b = 0$、$a_{\text{in}} = 0$ 处，许多变异体碰巧给出正确的数，记为“未改变”，在那里任何检查都看不见它们。

# %%
at_zero = forward(np.eye(4), np.zeros(4), np.zeros((5, 4)))[1]
unchanged = {}
for name, point in {"generic": saved, "zero": at_zero}.items():
    score = reference.mutation_score(backward, lambda rule: True, point, g)
    unchanged[name] = score.counts["unchanged"]
    print(f"{name} point: {unchanged[name]} of {len(score.mutants)} mutants change nothing")
assert unchanged["generic"] == 0 and unchanged["zero"] >= 10

# %% [markdown]
# ## Put it into pytest 写进 pytest
#
# Installing this package gives pytest two fixtures and a mark. Here is a project of two files: the rule of this
# notebook beside one that forgets the transpose, and a test for each.
#
# 安装本程序包后，pytest 就有了两个 fixture 和一个标记。下面的小项目有两个文件：本文的规则和一个漏掉转置的规则，各有一个测试。

# %%
HEAD = "import jax\nimport jax.numpy as jnp\nimport numpy as np\nimport pytest\n\n"
RULES = """
right, wrong = jax.custom_vjp(layer), jax.custom_vjp(layer)
right.defvjp(forward, backward)
wrong.defvjp(forward, lambda saved, g: (*backward(saved, g)[:2], (g * (1 - saved[2] ** 2)) @ saved[0].T))
"""
rule_file = HEAD + "\n\n".join(map(inspect.getsource, (layer, forward, backward))) + RULES

# %%
test_file = """
from my_rule import *

rng = np.random.default_rng(0)
W, b, a_in = rng.normal(size=(4, 4)), rng.normal(size=4), rng.normal(size=(5, 4))

@pytest.mark.gradient(dtypes=["float32"], transforms=["eager"])
def test_the_right_rule(assert_vjp_correct):
    assert_vjp_correct(right, W, b, a_in)

def test_the_wrong_rule(assert_vjp_correct):
    assert_vjp_correct(wrong, W, b, a_in, transforms="eager")"""

# %%
with tempfile.TemporaryDirectory() as folder:
    Path(folder, "my_rule.py").write_text(rule_file, encoding="utf-8")
    Path(folder, "test_my_rule.py").write_text(test_file, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "--no-header", "--color=no", "-pno:cacheprovider"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
shown = re.sub(r" in [0-9.]+s.*", "", done.stdout.replace(str(folder), "."))
print("\n".join(line.strip("= ") for line in shown.splitlines() if line.strip()))
assert "1 failed, 1 passed" in shown

# %% [markdown]
# The failing test says which argument, which entry and by how much, and how to run that one test again. With
# `--gradient-report=gradients.html` the same run writes a page that holds every comparison.
#
# 失败的测试指出是哪个参数、哪个元素、相差多少，以及怎样单独重跑。加上 `--gradient-report=gradients.html`，同一次运行还会写出包含每一项比较的网页。
#
# ## The check 验证
#
# What this notebook said, in four lines: the rule is proven in both precisions, each of the five faults is found, the
# harness kills every mutant, and the check of two digits does not.
#
# 本文结论的验证：规则在两种精度下都通过，五种错误全部被发现，所有变异体都被杀死，而只看两位数字的检查做不到。

# %%
in_float32 = reference.check_vjp(mine, W, b, a_in, dtype="float32", transforms="eager")
print(in_float32.summary())
in_float32.raise_if_failed()
report.raise_if_failed()  # in float64, under jit and vmap too
assert all(found.verdict == "fail" for found in reports.values())
assert scores["two digits, then check_vjp"].score == 1 and scores["two digits"].survivors
