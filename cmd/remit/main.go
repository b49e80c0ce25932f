// SPDX-License-Identifier: Apache-2.0

// Command remit. For now it only links what the first capability needs, so that size, start-up and build time are known
// before any code depends on them.
package main

import (
	_ "github.com/go-jose/go-jose/v4"
	_ "github.com/google/go-containerregistry/pkg/v1/remote"
	_ "github.com/in-toto/attestation/go/v1"
	_ "github.com/open-policy-agent/opa/v1/rego"
	_ "github.com/secure-systems-lab/go-securesystemslib/dsse"
	_ "github.com/spf13/cobra"
	_ "github.com/spiffe/go-spiffe/v2/federation"
	_ "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	_ "github.com/spiffe/go-spiffe/v2/workloadapi"
	_ "github.com/transparency-dev/tessera"
	_ "github.com/transparency-dev/tessera/storage/posix"
	_ "go.yaml.in/yaml/v3"
	_ "golang.org/x/mod/sumdb/note"
	_ "golang.org/x/sys/unix"
	_ "google.golang.org/grpc"
	_ "k8s.io/client-go/kubernetes"
	_ "zombiezen.com/go/sqlite/sqlitex"
)

func main() {}
