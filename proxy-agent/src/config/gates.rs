//! Feature gates (GATE).
//!
//! All of Kubernetes' gates are in one registry, which every component accepts whatever it does with them. Here, one of
//! them means something, and what a cluster sets for its other components must not keep the agent from starting.

use std::collections::BTreeMap;

/// Whether `spec.externalIPs` are served (XIP-03).
const EXTERNAL_IPS: &str = "AllowServiceExternalIPs";

/// Gates of which the datapath has what they switched on once, and nothing to do without it.
const ALWAYS_ON: [&str; 5] = [
    "PreferSameTrafficDistribution",
    "ProxyTerminatingEndpoints",
    "ServiceInternalTrafficPolicy",
    "ServiceTrafficDistribution",
    "TopologyAwareHints",
];

/// Whether external IPs are served, as far as gates say.
pub(super) fn external_ips(gates: &BTreeMap<String, bool>) -> bool {
    gates.get(EXTERNAL_IPS).copied().unwrap_or(true)
}

/// Why a gate cannot be set so, if it cannot (GATE-10).
pub(super) fn problem(name: &str, enabled: bool) -> Option<&'static str> {
    if !KNOWN.split_ascii_whitespace().any(|known| known == name) {
        Some("is not a feature gate of Kubernetes up to 1.36")
    } else if ALWAYS_ON.contains(&name) && !enabled {
        Some("cannot be switched off, as in Kubernetes 1.36")
    } else {
        None
    }
}

/// The gates of Kubernetes 1.28 to 1.36, in the order of their names.
const KNOWN: &str = "
    APIListChunking APIPriorityAndFairness APIResponseCompression APISelfSubjectReview APIServerIdentity
    APIServerTracing APIServingWithRoutine AdmissionWebhookMatchConditions AggregatedDiscoveryEndpoint
    AggregatedDiscoveryRemoveBetaType AllAlpha AllBeta AllowDNSOnlyNodeCSR
    AllowInsecureKubeletCertificateSigningRequests AllowOverwriteTerminationGracePeriodSeconds
    AllowParsingUserUIDFromCertAuth AllowServiceExternalIPs AllowServiceLBStatusOnNonLB
    AllowUnsafeMalformedObjectDeletion AnonymousAuthConfigurableEndpoints AnyVolumeDataSource AppArmor
    AppArmorFields AtomicFIFO AtomicWriteVolumeUserFields AuthorizeNodeWithSelectors
    AuthorizePodWebsocketUpgradeCreatePermission AuthorizeWithSelectors BtreeWatchCache
    CBORServingAndStorage CPUCFSQuotaPeriod CPUManager CPUManagerPolicyAlphaOptions
    CPUManagerPolicyBetaOptions CPUManagerPolicyOptions CRDObservedGenerationTracking
    CRDValidationRatcheting CRIListStreaming CSIMigrationPortworx CSIMigrationRBD CSINodeExpandSecret
    CSIServiceAccountTokenSecrets CSIVolumeHealth ChangeContainerStatusOnKubeletRestart
    ClearingNominatedNodeNameAfterBinding ClientsAllowCBOR ClientsPreferCBOR
    CloudControllerManagerWatchBasedRoutesReconciliation CloudControllerManagerWebhook CloudDualStackNodeIPs
    ClusterTrustBundle ClusterTrustBundleProjection ComponentFlagz ComponentSLIs ComponentStatusz
    ConcurrentWatchObjectDecode ConsistentHTTPGetHandlers ConsistentListFromCache ConstrainedImpersonation
    ContainerCheckpoint ContainerRestartRules ContainerStopSignals ContextualLogging
    CoordinatedLeaderElection CronJobsScheduledAnnotation CrossNamespaceVolumeDataSource
    CustomCPUCFSQuotaPeriod CustomResourceFieldSelectors CustomResourceValidationExpressions DRAAdminAccess
    DRAConsumableCapacity DRAControlPlaneController DRADeviceBindingConditions DRADeviceTaintRules
    DRADeviceTaints DRAExtendedResource DRAPartitionableDevices DRAPrioritizedList
    DRAResourceClaimDeviceStatus DRASchedulerFilterTimeout DeclarativeValidation
    DeclarativeValidationTakeover DeploymentPodReplacementPolicy DeploymentReplicaSetTerminatingReplicas
    DetectCacheInconsistency DevicePluginCDIDevices DisableAllocatorDualWrite
    DisableCPUQuotaWithExclusiveCPUs DisableCloudProviders DisableKubeletCloudCredentialProviders
    DisableNodeKubeProxyVersion DynamicResourceAllocation EfficientWatchResumption ElasticIndexedJob
    EnvFiles EventedPLEG ExecProbeTimeout ExpandedDNSConfig ExperimentalHostUserNamespaceDefaulting
    ExternalServiceAccountTokenSigner GangScheduling GenericWorkload GitRepoVolumeDriver
    GracefulNodeShutdown GracefulNodeShutdownBasedOnPodPriority HPAConfigurableTolerance HPAContainerMetrics
    HPAScaleToZero HonorPVReclaimPolicy HostnameOverride IPTablesOwnershipCleanup ImageMaximumGCAge
    ImageVolume ImageVolumeWithDigest InOrderInformers InOrderInformersBatchProcess
    InPlacePodLevelResourcesVerticalScaling InPlacePodVerticalScaling
    InPlacePodVerticalScalingAllocatedStatus InPlacePodVerticalScalingExclusiveCPUs
    InPlacePodVerticalScalingExclusiveMemory InTreePluginPortworxUnregister InformerResourceVersion
    JobBackoffLimitPerIndex JobManagedBy JobPodFailurePolicy JobPodReplacementPolicy JobReadyPods
    JobSuccessPolicy KMSv1 KMSv2 KMSv2KDF KubeProxyDrainingTerminatingNodes KubeletCgroupDriverFromCRI
    KubeletCrashLoopBackOffMax KubeletEnsureSecretPulledImages KubeletFineGrainedAuthz
    KubeletInUserNamespace KubeletPSI KubeletPodResources KubeletPodResourcesDynamicResources
    KubeletPodResourcesGet KubeletPodResourcesGetAllocatable KubeletPodResourcesListUseActivePods
    KubeletRegistrationGetOnExistsOnly KubeletSeparateDiskGC
    KubeletServiceAccountTokenForCredentialProviders KubeletTracing LegacyServiceAccountTokenCleanUp
    LegacyServiceAccountTokenTracking LegacySidecarContainers ListFromCacheSnapshot LoadBalancerIPMode
    LocalStorageCapacityIsolationFSQuotaMonitoring LogarithmicScaleDown LoggingAlphaOptions
    LoggingBetaOptions MatchLabelKeysInPodAffinity MatchLabelKeysInPodTopologySpread
    MatchLabelKeysInPodTopologySpreadSelectorMerge MaxUnavailableStatefulSet MemoryManager MemoryQoS
    MinDomainsInPodTopologySpread MinimizeIPTablesRestore MultiCIDRRangeAllocator MultiCIDRServiceAllocator
    MutableCSINodeAllocatableCount MutablePVNodeAffinity MutablePodResourcesForSuspendedJobs
    MutableSchedulingDirectivesForSuspendedJobs MutatingAdmissionPolicy NFTablesProxyMode NativeHistograms
    NewVolumeManagerReconstruction NodeDeclaredFeatures NodeInclusionPolicyInPodTopologySpread NodeLogQuery
    NodeOutOfServiceVolumeDetach NodeSwap NominatedNodeNameForExpectation OpenAPIEnums OpenAPIV3
    OpportunisticBatching OrderedNamespaceDeletion PDBUnhealthyPodEvictionPolicy
    PersistentVolumeLastPhaseTransitionTime PodAndContainerStatsFromCRI PodCertificateRequest
    PodDeletionCost PodDisruptionConditions PodHasNetworkCondition PodHostIPs PodIndexLabel
    PodLevelResources PodLifecycleSleepAction PodLifecycleSleepActionAllowZero PodLogsQuerySplitStreams
    PodObservedGenerationTracking PodReadyToStartContainersCondition PodSchedulingReadiness
    PodTopologyLabelsAdmission PortForwardWebsockets PreferSameTrafficDistribution
    PreventStaticPodAPIReferences ProbeTerminationGracePeriod ProcMountType ProxyTerminatingEndpoints
    QOSReserved ReadWriteOncePod RecoverVolumeExpansionFailure RecursiveReadOnlyMounts
    ReduceDefaultCrashLoopBackOffDecay RelaxedDNSSearchValidation RelaxedEnvironmentVariableValidation
    RelaxedServiceNameValidation ReloadKubeletServerCertificateFile RemainingItemCount
    RemoteRequestHeaderUID ResilientWatchCacheInitialization ResourceHealthStatus
    ResourceHealthStatusMessage RestartAllContainersOnContainerExits RetroactiveDefaultStorageClass
    RetryGenerateName RotateKubeletServerCertificate RuntimeClassInImageCriApi SELinuxChangePolicy
    SELinuxMount SELinuxMountReadWriteOncePod SchedulerAsyncAPICalls SchedulerAsyncPreemption
    SchedulerPopFromBackoffQ SchedulerQueueingHints SeccompDefault SecurityContextDeny SeparateCacheWatchRPC
    SeparateTaintEvictionController ServerSideApply ServerSideFieldValidation
    ServiceAccountNodeAudienceRestriction ServiceAccountTokenJTI ServiceAccountTokenNodeBinding
    ServiceAccountTokenNodeBindingValidation ServiceAccountTokenPodNodeInfo ServiceIPStaticSubrange
    ServiceInternalTrafficPolicy ServiceNodePortStaticSubrange ServiceTrafficDistribution SidecarContainers
    SizeBasedListCostEstimate SizeMemoryBackedVolumes SkipReadOnlyValidationGCE StableLoadBalancerNodeSet
    StatefulSetAutoDeletePVC StatefulSetMinReadySeconds StatefulSetSemanticRevisionComparison
    StatefulSetStartOrdinal StorageCapacityScoring StorageNamespaceIndex StorageVersionAPI
    StorageVersionHash StorageVersionMigrator StreamingCollectionEncodingToJSON
    StreamingCollectionEncodingToProtobuf StrictCostEnforcementForVAP StrictCostEnforcementForWebhooks
    StrictIPCIDRValidation StructuredAuthenticationConfiguration
    StructuredAuthenticationConfigurationEgressSelector StructuredAuthenticationConfigurationJWKSMetrics
    StructuredAuthorizationConfiguration SupplementalGroupsPolicy SystemdWatchdog
    TaintTolerationComparisonOperators TokenRequestServiceAccountUIDValidation TopologyAwareHints
    TopologyManager TopologyManagerPolicyAlphaOptions TopologyManagerPolicyBetaOptions
    TopologyManagerPolicyOptions TranslateStreamCloseWebsocketRequests UnauthenticatedHTTP2DOSMitigation
    UnknownVersionInteroperabilityProxy UnlockWhileProcessingFIFO UserNamespacesHostNetworkSupport
    UserNamespacesPodSecurityStandards UserNamespacesStatelessPodsSupport UserNamespacesSupport
    ValidatingAdmissionPolicy VolumeAttributesClass VolumeCapacityPriority VolumeLimitScaling WatchBookmark
    WatchCacheInitializationPostStartHook WatchFromStorageWithoutResourceVersion WatchList WatchListClient
    WinDSR WinOverlay WindowsCPUAndMemoryAffinity WindowsGracefulNodeShutdown WindowsHostNetwork
    WindowsHostProcessContainers ZeroLimitedNominalConcurrencyShares
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_order_and_there_once() {
        let names: Vec<_> = KNOWN.split_ascii_whitespace().collect();
        assert!(names.is_sorted_by(|a, b| a < b));
        assert!(ALWAYS_ON.iter().chain([&EXTERNAL_IPS]).all(|name| names.contains(name)));
    }

    #[test]
    fn gates_are_known_by_name() {
        assert_eq!(problem("AllowServiceExternalIPs", false), None);
        assert_eq!(problem("NFTablesProxyMode", false), None);
        assert_eq!(problem("TopologyAwareHints", true), None);
        assert!(problem("TopologyAwareHints", false).unwrap().contains("cannot be switched off"));
        for unknown in ["", "allowserviceexternalips", "AllowServiceExternalIP", "APIListChunking "] {
            assert!(problem(unknown, true).unwrap().contains("not a feature gate"), "{unknown:?}");
        }
    }

    #[test]
    fn external_ips_are_served_unless_their_gate_says_otherwise() {
        let gates =
            |gates: &[(&str, bool)]| gates.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect();
        assert!(external_ips(&gates(&[])) && external_ips(&gates(&[("AllAlpha", false)])));
        assert!(!external_ips(&gates(&[(EXTERNAL_IPS, false)])));
    }
}
