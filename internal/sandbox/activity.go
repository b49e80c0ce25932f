// SPDX-License-Identifier: Apache-2.0

package sandbox

// Activity is what was seen of a tool from outside it.
type Activity struct {
	Executed  uint64   `json:"executed"`
	Opened    uint64   `json:"opened"`
	Connected uint64   `json:"connected"`
	Programs  []string `json:"programs,omitempty"`  // distinct, in order of appearance, at most MostSeen
	Addresses []string `json:"addresses,omitempty"` // likewise
	// Dropped counts what happened and was not seen: evidence that is lost.
	Dropped uint64 `json:"dropped"`
	// More counts distinct programs and addresses beyond the lists.
	More uint64 `json:"more,omitempty"`
}

// MostSeen bounds the lists of an Activity.
const MostSeen = 64
