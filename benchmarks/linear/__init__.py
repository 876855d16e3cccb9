"""The suite over linear cross-entropy: the loss of ``x @ w`` (x [N, D], w [D, V], labels [N]) by every method there is.

Counting. One product, 1 mm, is 2·N·V·D FLOP. The loss takes one. With its gradients by x and w it takes three, if the
logits are kept or their gradient is made as soon as they are there, and four if they are computed again. The bytes that
must move, with s bytes a number, are s·(N·D + D·V) + 4·N for the loss (x, w and labels read once) and twice the first
term more for the gradients (written once): 2·s·(N·D + D·V) + 4·N. The floor is the larger of FLOP over the machine's
rate of products and bytes over its rate of copies; beside it stands a floor that is measured in the same rounds, the
products alone: of every shape, without a softmax between them.

Numbers. x is standard normal and w normal of variance 1/D, so that logits have standard deviation 1; labels are
uniform; never zeros, for which processors take less power. The result is the mean over the tokens; its gradients are in
the dtype of the arguments.

Errors. Beside each time stands the error against float64: of the loss, relative; of each gradient, the largest of an
entry over the largest entry, and in the Euclidean norm; and of the worst class, the norm of its column of w's gradient,
relative. A method that leaves out what is small is found by the last. Gradients by x are compared at up to 256 tokens,
by w at up to 4,096 classes, the first, the last and labels among them; all tokens and classes go into each.

On a processor :mod:`benchmarks.linear.suite` measures all methods in one process, in interleaved rounds. On an
accelerator :mod:`benchmarks.linear.stages` first checks and tunes, then measures, within nine minutes; methods of torch
run in a process of their own, beside the products alone in torch.
"""
