"""What KubeRay and Kubernetes take, as types that refuse anything else: for jobs/kuberay, which no Kubernetes has run.

Written from KubeRay's API reference (ray.io/v1, releases 1.3 to 1.5) and Kubernetes' (core/v1, scheduling.k8s.io/v1):
of KubeRay every field of a spec, of Kubernetes those that the manifests use.
"""

# ruff: noqa: N815 - the fields' names are theirs

import re
import shlex
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

NAME = r"^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$"  # a head service's name is made of it, and must fit in 63 letters
CPU, MEMORY = re.compile(r"(\d+(?:\.\d+)?)(m?)"), re.compile(r"(\d+)(Ki|Mi|Gi|Ti)")


class Exact(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def _start_params(params: dict[str, str]) -> dict[str, str]:
    if unknown := params.keys() - START_PARAMS:
        raise ValueError(f"`ray start` has no --{min(unknown)}")
    return params


def start_params() -> set[str]:
    """Long options of the installed `ray start`."""
    from ray.scripts.scripts import start

    return {name.removeprefix("--") for option in start.params for name in option.opts}


START_PARAMS = start_params()
StartParams = Annotated[dict[str, str], AfterValidator(_start_params)]
Name = Annotated[str, Field(pattern=NAME)]


class Metadata(Exact):
    name: Name
    namespace: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Exec(Exact):
    command: list[str] = Field(min_length=1)


class Handler(Exact):
    exec: Exec


class Probe(Handler):
    initialDelaySeconds: int = Field(default=0, ge=0)
    periodSeconds: int = Field(default=10, ge=1)
    timeoutSeconds: int = Field(default=1, ge=1)
    failureThreshold: int = Field(default=3, ge=1)
    successThreshold: int = Field(default=1, ge=1)


class Lifecycle(Exact):
    preStop: Handler


class Variable(Exact):
    name: str
    value: str  # a number would be refused by Kubernetes


class Port(Exact):
    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,15}$")]
    containerPort: int = Field(ge=1, le=65535)


class Mount(Exact):
    name: str
    mountPath: str


Quantities = dict[Literal["cpu", "memory", "nvidia.com/gpu"], str]


class Resources(Exact):
    requests: Quantities
    limits: Quantities

    @model_validator(mode="after")
    def _ray_sees_what_is_reserved(self) -> "Resources":
        """Ray takes the limits for what a pod has; GPUs must be the same in both by Kubernetes' own rule."""
        if self.requests != self.limits:
            raise ValueError("requests and limits differ")
        if not (CPU.fullmatch(self.limits["cpu"]) and MEMORY.fullmatch(self.limits["memory"])):
            raise ValueError(f"no quantities: {self.limits}")
        return self

    def ray(self) -> dict[str, float]:
        """As KubeRay tells Ray."""
        return {"CPU": float(self.limits["cpu"]), "GPU": float(self.limits.get("nvidia.com/gpu", 0))}


class Container(Exact):
    name: str
    image: str
    env: list[Variable] = []
    ports: list[Port] = []
    readinessProbe: Probe | None = None
    livenessProbe: Probe | None = None
    lifecycle: Lifecycle | None = None
    resources: Resources
    volumeMounts: list[Mount] = []


class Claim(Exact):
    claimName: str


class EmptyDir(Exact):
    medium: Literal["", "Memory"] = ""
    sizeLimit: str | None = None


class Volume(Exact):
    name: str
    persistentVolumeClaim: Claim | None = None
    emptyDir: EmptyDir | None = None


class Toleration(Exact):
    key: str
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _a_value_where_one_is_compared(self) -> "Toleration":
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError("Equal has a value, Exists has none")
        return self


class Pod(Exact):
    containers: list[Container] = Field(min_length=1)
    volumes: list[Volume] = []
    tolerations: list[Toleration] = []
    priorityClassName: str | None = None
    terminationGracePeriodSeconds: int | None = Field(default=None, ge=0)
    nodeSelector: dict[str, str] = {}

    @model_validator(mode="after")
    def _mounts_are_of_volumes(self) -> "Pod":
        mounted = {mount.name for container in self.containers for mount in container.volumeMounts}
        if mounted != {volume.name for volume in self.volumes}:
            raise ValueError("volumes and mounts differ")
        return self


class Template(Exact):
    metadata: dict[str, Any] | None = None
    spec: Pod


class HeadGroup(Exact):
    rayStartParams: StartParams
    template: Template
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] | None = None
    headService: dict[str, Any] | None = None
    enableIngress: bool | None = None


class ScaleStrategy(Exact):
    workersToDelete: list[str] = []


class WorkerGroup(Exact):
    groupName: Name
    replicas: int = Field(default=0, ge=0)
    minReplicas: int = Field(ge=0)
    maxReplicas: int = Field(ge=0)
    idleTimeoutSeconds: int | None = None
    numOfHosts: int = Field(default=1, ge=1)
    rayStartParams: StartParams
    template: Template
    scaleStrategy: ScaleStrategy | None = None
    suspend: bool | None = None

    @model_validator(mode="after")
    def _replicas_are_within_bounds(self) -> "WorkerGroup":
        if not self.minReplicas <= self.replicas <= self.maxReplicas:
            raise ValueError(f"{self.groupName}: replicas {self.replicas} not within its own bounds")
        return self

    def nodes(self) -> list[dict[str, float]]:
        """Resources of every node that it may have."""
        return [self.template.spec.containers[0].resources.ray()] * (self.maxReplicas * self.numOfHosts)


class Autoscaler(Exact):
    version: Literal["v1", "v2"] | None = None
    resources: Resources | None = None
    image: str | None = None
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"] | None = None
    securityContext: dict[str, Any] | None = None
    idleTimeoutSeconds: int | None = Field(default=None, ge=0)
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None
    env: list[Variable] = []
    envFrom: list[dict[str, Any]] = []
    volumeMounts: list[Mount] = []


class ClusterSpec(Exact):
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] = []
    rayVersion: str
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: Autoscaler | None = None
    headServiceAnnotations: dict[str, str] = {}
    gcsFaultToleranceOptions: dict[str, Any] | None = None
    suspend: bool | None = None
    managedBy: Literal["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"] | None = None

    def nodes(self) -> list[dict[str, float]]:
        """Resources of every worker node that it may have."""
        return [node for group in self.workerGroupSpecs for node in group.nodes()]


class Submitter(Exact):
    backoffLimit: int = Field(ge=0)


class JobSpec(Exact):
    entrypoint: str
    rayClusterSpec: ClusterSpec | None = None
    clusterSelector: dict[str, str] | None = None
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] = "K8sJobMode"
    submitterConfig: Submitter | None = None
    submitterPodTemplate: Template | None = None
    metadata: dict[str, str] = {}
    runtimeEnvYAML: str | None = None
    jobId: str | None = None
    entrypointNumCpus: float | None = None
    entrypointNumGpus: float | None = None
    entrypointResources: str | None = None
    activeDeadlineSeconds: int | None = Field(default=None, ge=1)
    backoffLimit: int = Field(default=0, ge=0)
    shutdownAfterJobFinishes: bool = False
    ttlSecondsAfterFinished: int = Field(default=0, ge=0)
    suspend: bool | None = None
    managedBy: Literal["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"] | None = None
    deletionStrategy: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _as_the_operator_has_it(self) -> "JobSpec":
        if (self.rayClusterSpec is None) == (self.clusterSelector is None):
            raise ValueError("either a cluster of its own or one that is selected")
        if self.ttlSecondsAfterFinished and not self.shutdownAfterJobFinishes:
            raise ValueError("ttlSecondsAfterFinished is only for shutdownAfterJobFinishes")
        if self.clusterSelector and self.backoffLimit:
            raise ValueError("a retry makes a new cluster, which a selected one is not")
        shlex.split(self.entrypoint)
        return self


class UpgradeStrategy(Exact):
    type: Literal["NewCluster", "None", "NewClusterWithIncrementalUpgrade"]


class ServiceSpec(Exact):
    rayClusterConfig: ClusterSpec
    serveConfigV2: str
    serveService: dict[str, Any] | None = None
    upgradeStrategy: UpgradeStrategy | None = None
    excludeHeadPodFromServeSvc: bool | None = None


class RayResource(Exact):
    apiVersion: Literal["ray.io/v1"]
    metadata: Metadata


class RayCluster(RayResource):
    kind: Literal["RayCluster"]
    spec: ClusterSpec


class RayJob(RayResource):
    kind: Literal["RayJob"]
    spec: JobSpec


class RayService(RayResource):
    kind: Literal["RayService"]
    spec: ServiceSpec


class PriorityClass(Exact):
    apiVersion: Literal["scheduling.k8s.io/v1"]
    kind: Literal["PriorityClass"]
    metadata: Metadata
    value: int = Field(le=1_000_000_000)
    globalDefault: bool = False
    preemptionPolicy: Literal["PreemptLowerPriority", "Never"] = "PreemptLowerPriority"
    description: str = ""


KINDS: dict[str, type[BaseModel]] = {
    "RayCluster": RayCluster, "RayJob": RayJob, "RayService": RayService, "PriorityClass": PriorityClass,
}  # fmt: skip


def check(text: str) -> list[Any]:
    """The resources of a manifest. Raises ValidationError for a field that there isn't, or a value it may not have."""
    return [KINDS[each["kind"]].model_validate(each) for each in yaml.safe_load_all(text)]
