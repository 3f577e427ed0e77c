"""Where the processes of a role may run on a cluster. Every role has this section; `jobs.processes.needs` reads it."""

from typing import Annotated

from pydantic import Field, field_validator

from tasks.section import Section


class Placement(Section):
    """On which nodes of a cluster a role's processes may run, besides what they reserve anyway (docs/scaling.md)."""

    accelerator_type: str = ""
    """The GPU that the node must have, by its name in Ray, such as "L4" or "H100". "" takes any node. This reserves no
    GPU: `num_gpus` does."""
    label_selector: dict[str, str] = Field({})
    """The labels that the node must have, by their keys: a value, "!value", "in(value, other)" or "!in(value, other)".
    Ray sets some by itself, such as "ray.io/market-type" on Kubernetes."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field({})
    """How much each process reserves of resources that you have named yourself, where you started the nodes with
    `ray start --resources`."""

    @field_validator("resources")
    @classmethod
    def _of_ones_own(cls, resources: dict[str, float]) -> dict[str, float]:
        for name in ("CPU", "GPU", "memory", "object_store_memory"):
            if name in resources:
                own = "num_gpus says how many GPUs it reserves" if name == "GPU" else "every process reserves one CPU and no memory"
                raise ValueError(f"no resource of your own can be {name}: {own}")
        return resources
