"""How fast is shmstore, beside its floors and its peers?

``python -m benchmarks [NAME ...] [--json FILE] [--quick]`` runs the workloads of that name, all of
them by default.

Every figure stands beside a floor that was measured in the same run, in interleaved rounds: the
least that Python itself needs for the same effect. Compare ratios, not times: times drift from one
run to the next, and differences under 1.5 between separate runs are ties.

============== =================================================================================
``samples``    the objects that are put and got
``kinds``      objects of each type that is handled, for the workload ``types``
``volumes``    how many bytes an operation writes
``clock``      how an operation is timed
``peers/``     one adapter for each way to share objects, the floor among them
``reader``     the other process, and what it can be told to do
``arena``      one of each peer set up around a sample, and everything taken down afterwards
``workloads/`` what is measured; a new workload is a module here and a line in its ``__init__``
``scratch``    the folder on tmpfs that holds it all
``machine``    what it ran on
``results``    what a figure is
``targets``    the ratios that shmstore is meant to reach
``beside``     the figures of each type in one line with its floor
``report``     tables and JSON
============== =================================================================================
"""
