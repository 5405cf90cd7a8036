//! The packet mark: a function of the VNID alone, as OpenShift SDN computes it.
