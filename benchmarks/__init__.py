"""How fast is shmstore, beside its floors and its peers?

``python -m benchmarks [NAME ...]`` runs the workloads of that name, all of them by default;
``--list`` says what there is, ``--quick`` takes a first look, ``--json FILE`` keeps the figures,
``--render docs`` writes the page of the documentation; with ``--read FILE`` from figures that were
kept.

Every figure stands beside a floor and peers that were measured in the same run, in interleaved
rounds, each in processes of its own. Compare ratios, not times: times drift from one run to the
next, and differences under 1.5 between separate runs are ties.

================ ===============================================================================
``catalogue``    what is measured; a workload is a module in ``workloads/`` and a line there
``peers/``       one adapter for each way to share objects, the floors among them
``environments`` where peers are installed that need an environment of their own
``samples``      the objects that are put and got
``kinds``        objects of each type that is handled, for the workload ``types``
``volumes``      how many bytes an operation writes, for the same
``clock``        how operations are timed, by turns
``actor``        what the processes of a peer do
``crew``         the processes of all peers, and who of them fits into memory at once
``arena``        what a workload needs
``together``     many processes that do the same at once
``line``         how two processes tell each other that something is there
``scratch``      the folder on tmpfs that holds it all
``machine``      what it ran on
``results``      what a figure is
``targets``      what shmstore is meant to reach
``beside``       the figures of each type in one line with its floor
``report``       tables and JSON
``render``       the page of the documentation
``plots``        its pictures
================ ===============================================================================
"""
