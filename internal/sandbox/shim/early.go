// SPDX-License-Identifier: Apache-2.0

package shim

// The shim needs little, and starts before most of the program's packages are initialised (see gvisor's, too): a tool's start waits for it.
func init() { Dispatch() }
