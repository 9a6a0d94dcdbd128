from .registry import task_of as task_of
from .task import Task as Task
