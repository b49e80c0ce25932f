// SPDX-License-Identifier: Apache-2.0

// Package workloadapi serves the SPIFFE Workload API (SPIFFE_Workload_API, SPIFFE_Workload_Endpoint) on Unix sockets: all five
// calls of the X.509 and JWT profiles, for unmodified SPIFFE clients.
//
// There are two kinds of sockets. The shared one is open to everybody on the host, and the kernel says who connected; an agent's
// file lists the selectors that must hold. A bound one is made for one launch: it serves that launch's identity to the launched
// process, with inherit to its descendants, and to nobody else.
//
// Who calls is attested again at every call and every push. An SVID leaves only after it is on record (OnIssue). The package
// signs nothing and decides on no request; it owns the goroutines of its gRPC server and its listeners, and Close waits for them.
package workloadapi
