// SPDX-License-Identifier: Apache-2.0

// Package remit is the vocabulary: who asks (Principal, Agent), for what (Request), inside which work (Workflow, Stage,
// Permission, Run), on which verified facts (Evidence), the answer (Decision) and what comes of it (Grant, Lease, Event).
//
// It holds values, their parsing and their canonical forms; no I/O, no clock, no goroutine. It imports the standard library
// and spiffeid only. Values are plain data: whoever holds a pointer to one that it did not make does not change it.
package remit
