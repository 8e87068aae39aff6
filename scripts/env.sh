# Settings for MPI on a small shared machine; sourced by the scripts that start ranks.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1     # more ranks than cores
export OMPI_MCA_hwloc_base_binding_policy=none # ranks may use all cores
export OMPI_MCA_mpi_yield_when_idle=1          # waiting ranks give way
export OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader,tcp
export OMPI_MCA_ess_singleton_isolated=1       # a program without mpirun starts at once
export OMP_WAIT_POLICY=passive                 # OpenMP barriers give way
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1}
