"""Train: stage two, students trained on a stream of views and the teacher's answers.

For the command line, `report`, `bench`, `demo` and your own scripts.

launch          `TrainJob`: students, data and losses by name, in one process or under torchrun
loop            `train`: students side by side, a pass over the data for each epoch
learner         `Run`, what to train; `Learner`, one student from step to step
variants        losses and settings by text, as `--variant` gives them
notes           what is said before the first step
layer_norms     AdamW for students that have layer norms
config          `TrainConfig`, every setting; published sets of settings by name
optim           the optimiser, the learning rate by step, the moving average
epoch_meter     steps and losses of an epoch
events          what `train` reports: a step taken, an epoch completed, a student that failed
run_folder      the files of a run, written and read
same_run        whether a run that would go on is the one that was begun
begun           what runs that go on keep
folder_names    what run folders are called
tensorboard     the numbers of metrics.jsonl as curves
trained         a trained student from its run folder or its weights
evaluation      a test set, and how good models are on it
evaluation_job  the same by name
selection       which samples to keep, by a score or by what they cover
selection_job   the same by name
training_answers  what a student says of the images of a cache
score_meter     what a model answered on a test set: accuracy, calibration, agreement with the teacher
confidence      accuracy by confidence bin
cost            floating-point operations and seconds of a forward
validation      training images held out, to choose how two heads answer together
"""

from typing import TYPE_CHECKING

from logitcache.lazy import lazy

if TYPE_CHECKING:
    from logitcache.train.config import TrainConfig
    from logitcache.train.evaluation import Evaluation
    from logitcache.train.learner import Run
    from logitcache.train.loop import RunReport, train

__all__ = ["Evaluation", "Run", "RunReport", "TrainConfig", "train"]

__getattr__, __dir__ = lazy(
    __name__,
    {"config": "TrainConfig", "evaluation": "Evaluation", "learner": "Run", "loop": "RunReport train"},
)
