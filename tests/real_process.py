"""One process of several that fit together: what tests of processes start. Its arguments: its number, how many there
are, the port of the first, what to do, and the folder for what it finds."""

import os
import signal
import sys
import time

if __name__ == "__main__":  # tests import what stands here, and have other devices
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax
import numpy as np

#: The rows of each process: uneven, and of the first of four none.
CUTS = {2: [0, 140, 203], 4: [0, 0, 100, 110, 203]}


def rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(203, 4)) * [1, 10, 0.1, 3] + [0, 5, 100, 1]
    two = (x[:, 0] + rng.normal(size=203) > 0).astype(int)
    return x, two, two + (x[:, 3] > 2), rng.uniform(size=203)


def fits(mesh, part):
    """Parameters, errors and statuses of fits of every kind."""
    import optax
    import scipy.sparse

    import xentjax as xj

    x, two, three, weights = (array[part] for array in rows())
    found = {}

    def keep(name, fit):
        found[name] = np.append(np.ravel(fit.params.weights), np.ravel(fit.params.bias))
        found[f"{name} status"] = str(fit.status)
        if fit.covariance is not None:
            found[f"{name} errors"] = np.ravel(fit.std_err.weights)

    keep("newton", xj.fit_logistic(x, two, weights=weights, mesh=mesh))
    keep("classes", xj.fit_logistic(x, three, class_weight="balanced", l2=0.01, solver="newton", mesh=mesh))
    separated = np.column_stack([np.where(two, 1.0, -1.0), x])
    keep("separated", xj.fit_logistic(separated, two, mesh=mesh))
    sparse = scipy.sparse.csr_matrix(np.where(np.abs(x) > 1, x, 0))
    keep("sparse", xj.fit_logistic(sparse, two, l2=0.1, mesh=mesh))
    path = xj.fit_path(x, two, num_lambdas=4, tol=1e-12, mesh=mesh)
    found["path"] = np.asarray(path.params.weights)
    init = xj.LogisticParams(np.zeros(4), np.zeros(()))
    settings = {"epochs": 2, "batch_size": 32, "seed": 1, "mesh": mesh}
    found["batches"] = np.asarray(
        xj.train_minibatch(xj.logistic_loss, init, (x, two), optax.sgd(1e-3), **settings).params.weights
    )
    return found


def main():
    number, count, port, what, folder = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", count, number, heartbeat_timeout_seconds=10)
    mesh = jax.make_mesh((2 * count,), ("data",))
    part = slice(*CUTS[count][number : number + 2])
    if what == "fits":
        np.savez(os.path.join(folder, f"{number}.npz"), **fits(mesh, part))
        return
    import xentjax as xj

    x, two, *_ = (array[part] for array in rows())
    if what == "a mistake":
        if number == 1:
            x = np.where(np.arange(len(x))[:, None] == 3, np.nan, x)
        try:
            xj.fit_logistic(x, two, mesh=mesh)
        except ValueError as error:
            np.savez(os.path.join(folder, f"{number}.npz"), error=str(error))
        return
    assert what == "a death"
    objective = xj.LogisticObjective(x, two, l2=1e-3)
    try:
        for solution in xj.iterate(
            objective, objective.init(), xj.GradientDescent(1e-6), tol=0, max_steps=2**30, chunk=100, mesh=mesh
        ):
            if number == 1 and int(solution.steps) >= 300:
                os.kill(os.getpid(), signal.SIGKILL)
    except jax.errors.JaxRuntimeError as error:
        np.savez(os.path.join(folder, f"{number}.npz"), error=str(error), at=time.time())
        os._exit(3)


if __name__ == "__main__":
    main()
