// SPDX-License-Identifier: Apache-2.0

//go:build !amd64

package filters

import "gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"

// program is none: nobody generated it on such a processor.
var program precompiledseccomp.Program
