"""scikit-learn's n_jobs with the data in a store: it is there once for all workers."""

import sys

import numpy as np

try:
    from joblib import parallel_config
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import cross_val_score
except ModuleNotFoundError as error:
    print(f"{error.name} is not installed: there is nothing to show.")
    sys.exit()

from shmstore.integrations.joblib import register


def main():
    register()
    numbers = np.random.default_rng(0)
    points = numbers.normal(size=(2000, 20))
    values = points[:, 0] * 3 + points[:, 1] ** 2
    with parallel_config("shmstore", n_jobs=2):
        scores = cross_val_score(RandomForestRegressor(10, random_state=0), points, values, cv=4)
    print("scores:", scores.round(2).tolist())


if __name__ == "__main__":
    main()
