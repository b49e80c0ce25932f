// SPDX-License-Identifier: Apache-2.0

//go:build linux

package identity

import "testing"

// FuzzParseStatus: a process chooses its own name; it must not be able to write lines of its status.
func FuzzParseStatus(f *testing.F) {
	f.Add([]byte("Name:\tx\nPPid:\t1\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \n"))
	f.Add([]byte("Name:\ta\\nUid:\\t0\nPPid:\t1\nUid:\t4001\t4001\t4001\t4001\nGid:\t1\t1\t1\t1\n"))
	f.Add([]byte("Uid:\t1\t-2\t3\t4\nUid:\t1\t2\t3\t4\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseStatus(b); err == nil && s.parent < 0 {
			t.Errorf("%q has parent %d", b, s.parent)
		}
	})
}

func TestParseStatus(t *testing.T) {
	s, err := parseStatus([]byte("Name:\tx\nPPid:\t1\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \n"))
	if err != nil || s.parent != 1 || s.uid != 2 || s.gid != 6 || len(s.groups) != 2 {
		t.Errorf("%+v, %v: the ids must be the effective ones", s, err)
	}
	for _, bad := range []string{"", "Uid:\t1\t2\t3\t4\n", "PPid:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n",
		"PPid:\t1\nUid:\t1\t2\t3\t4\nUid:\t0\t0\t0\t0\nGid:\t5\t6\t7\t8\n"} {
		if _, err := parseStatus([]byte(bad)); err == nil {
			t.Errorf("%q was understood", bad)
		}
	}
}
