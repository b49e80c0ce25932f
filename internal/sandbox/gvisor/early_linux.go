// SPDX-License-Identifier: Apache-2.0

package gvisor

import _ "remit/internal/sandbox/gvisor/unmount" // its part comes before nearly all packages

// A sandbox starts this program four times and waits for each. Most of its packages are of no use there, and Go initialises them one
// after the other before main: those of the API clients and the policy engine cost more than gVisor's own. Packages are initialised as
// soon as what they import is, so that here the parts of gVisor have all that they need, and nothing of the rest has begun.
func init() { Dispatch() }
