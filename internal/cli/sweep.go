// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"remit/internal/server"
)

// sweepCommand is what runs in a cluster (deploy/kubernetes/sweeper.yaml): it ends expired leases without remit serve.
func (a *app) sweepCommand() *cobra.Command {
	var o server.SweepOptions
	var every time.Duration
	cmd := &cobra.Command{Use: "sweep", Short: "End expired leases at a target without the server", Hidden: true}
	k8s := &cobra.Command{Use: "kubernetes", Short: "Delete what expired leases left in a cluster", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			for {
				n, err := server.SweepKubernetes(c.Context(), o)
				if err != nil && every == 0 {
					return err
				}
				if err != nil {
					a.note("sweep: %v; it is tried again", err)
				}
				if n > 0 || every == 0 {
					fmt.Fprintf(a.out, "ended %d leases\n", n)
				}
				if every == 0 {
					return nil
				}
				select {
				case <-c.Context().Done():
					return nil
				case <-time.After(every):
				}
			}
		}}
	f := k8s.Flags()
	f.StringVar(&o.Kubeconfig, "kubeconfig", "", "the cluster; empty: the pod's own service account")
	f.StringSliceVar(&o.Namespaces, "namespaces", nil, "target namespaces")
	f.StringVar(&o.Installation, "installation", "", "the installation whose leases are swept")
	f.DurationVar(&every, "every", 0, "go on, as often as this; 0: once")
	cmd.AddCommand(k8s)
	return cmd
}
