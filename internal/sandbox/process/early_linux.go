// SPDX-License-Identifier: Apache-2.0

package process

// The child has all that it needs here, and does not wait for the packages of the rest of the program, whose initialisation takes
// longer than building a sandbox (see gvisor's, too).
func init() { Dispatch() }
