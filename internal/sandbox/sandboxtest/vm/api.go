// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// machine is what one Firecracker process was told, and its state.
type machine struct {
	id, root string
	uid      uint32

	mu     sync.Mutex // guards the rest: the API takes one request at a time
	state  string
	config struct {
		VCPUs  *uint8  `json:"vcpu_count"`
		Memory *uint64 `json:"mem_size_mib"`
		SMT    *bool   `json:"smt"`
	}
	boot *struct {
		Kernel string  `json:"kernel_image_path"`
		Args   *string `json:"boot_args"`
		Initrd *string `json:"initrd_path"`
	}
	drives []drive
	vsock  *vsock
}

type drive struct {
	ID       *string `json:"drive_id"`
	Root     *bool   `json:"is_root_device"`
	ReadOnly *bool   `json:"is_read_only"`
	Path     *string `json:"path_on_host"`
}

type vsock struct {
	CID  *uint32 `json:"guest_cid"`
	Path *string `json:"uds_path"`
}

func vmm(args []string) error {
	m := &machine{state: "Not started"}
	socket := "/run/firecracker.socket"
	for i, a := range args {
		name, value, _ := strings.Cut(strings.TrimPrefix(a, "--"), "=")
		switch name {
		case "id":
			m.id = value
		case "root":
			m.root = value
		case "uid":
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				return err
			}
			m.uid = uint32(n)
		case "api-sock":
			if i+1 < len(args) {
				socket = args[i+1]
			}
		}
	}
	if os.Getenv("HOME") != "" {
		return errors.New("the environment came into the jail")
	}
	dir, err := os.Open(m.root) // paths of sockets are short
	if err != nil {
		return err
	}
	ln, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socket))
	if err != nil {
		return err
	}
	return http.Serve(ln, m) //nolint:gosec // a test's
}

// fault is an answer of 400, with the words of the real one where a client could read them.
type fault string

func (f fault) Error() string { return string(f) }

const (
	onlyBefore = fault("The requested operation is not supported after starting the microVM.")
	onlyAfter  = fault("The requested operation is not supported before starting the microVM.")
)

func (m *machine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	body, err := io.ReadAll(io.LimitReader(r.Body, 51200+1)) // the real one's limit
	if err != nil || len(body) > 51200 {
		http.Error(w, "", http.StatusRequestEntityTooLarge)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	answer, err := m.answer(r.Method, strings.Split(strings.Trim(r.URL.Path, "/"), "/"), body)
	switch {
	case err != nil:
		w.WriteHeader(http.StatusBadRequest)
		answer = map[string]string{"fault_message": err.Error()}
	case answer == nil:
		w.WriteHeader(http.StatusNoContent)
		return
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (m *machine) answer(method string, path []string, body []byte) (any, error) {
	if method == http.MethodGet && len(body) > 0 {
		return nil, fault("GET request cannot have a body.")
	}
	if method == http.MethodPut && len(body) == 0 {
		return nil, fault("Empty PUT request.")
	}
	switch {
	case method == http.MethodGet && path[0] == "":
		return map[string]string{"app_name": "Firecracker", "id": m.id, "state": m.state, "vmm_version": "1.99.0"}, nil
	case method != http.MethodPut:
		return nil, fault(fmt.Sprintf("Invalid request method and/or path: %s %s.", method, strings.Join(path, "/")))
	case path[0] == "actions":
		return nil, m.act(body)
	case m.state != "Not started":
		return nil, onlyBefore
	}
	switch path[0] {
	case "machine-config":
		return nil, m.setMachine(body)
	case "boot-source":
		return nil, m.setBoot(body)
	case "drives":
		return nil, m.setDrive(path, body)
	case "vsock":
		return nil, m.setVsock(body)
	}
	return nil, fault(fmt.Sprintf("Invalid request method and/or path: %s %s.", method, strings.Join(path, "/")))
}

// decode refuses unknown fields, as the real one does.
func decode(body []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fault("An error occurred when deserializing the json body of a request: " + err.Error() + ".")
	}
	return nil
}

func (m *machine) setMachine(body []byte) error {
	c := m.config
	c.VCPUs, c.Memory, c.SMT = nil, nil, nil
	if err := decode(body, &c); err != nil {
		return err
	}
	if c.VCPUs == nil || c.Memory == nil {
		return fault("Missing mandatory fields.")
	}
	if *c.VCPUs == 0 || *c.VCPUs > 32 || c.SMT != nil && *c.SMT && *c.VCPUs > 1 && *c.VCPUs%2 == 1 {
		return fault("The vCPU number is invalid! The vCPU number can only be 1 or an even number when SMT is enabled.")
	}
	if *c.Memory == 0 {
		return fault("The memory size (MiB) is either 0, or not a multiple of the configured page size.")
	}
	m.config = c
	return nil
}

func (m *machine) setBoot(body []byte) error {
	b := new(struct {
		Kernel string  `json:"kernel_image_path"`
		Args   *string `json:"boot_args"`
		Initrd *string `json:"initrd_path"`
	})
	if err := decode(body, b); err != nil {
		return err
	}
	if err := m.opens(b.Kernel, false); err != nil {
		return fault("The kernel file cannot be opened: " + err.Error())
	}
	if b.Args != nil && len(*b.Args) > 2048 {
		return fault("The kernel command line is invalid: too large")
	}
	m.boot = b
	return nil
}

func (m *machine) setDrive(path []string, body []byte) error {
	var d drive
	if err := decode(body, &d); err != nil {
		return err
	}
	switch {
	case d.ID == nil || d.Root == nil:
		return fault("missing field")
	case len(path) != 2 || path[1] != *d.ID:
		return fault("The id from the path does not match the id from the body!")
	case d.Path == nil || d.ReadOnly == nil:
		return fault("Unable to create the virtio block device: invalid configuration")
	case strings.Trim(*d.ID, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "":
		return fault("Invalid drive id")
	}
	if err := m.opens(*d.Path, !*d.ReadOnly); err != nil {
		return fault("Unable to create the virtio block device: " + err.Error())
	}
	for i, other := range m.drives {
		if *other.ID == *d.ID {
			m.drives[i] = d
			return nil
		}
	}
	if *d.Root {
		if len(m.drives) > 0 && *m.drives[0].Root {
			return fault("A root block device already exists!")
		}
		m.drives = slices.Insert(m.drives, 0, d)
		return nil
	}
	m.drives = append(m.drives, d)
	return nil
}

func (m *machine) setVsock(body []byte) error {
	var v vsock
	if err := decode(body, &v); err != nil {
		return err
	}
	if v.CID == nil || v.Path == nil || *v.CID < 3 {
		return fault("Cannot create vsock device: invalid")
	}
	m.vsock = &v
	return nil
}

func (m *machine) act(body []byte) error {
	var a struct {
		Type string `json:"action_type"`
	}
	if err := decode(body, &a); err != nil {
		return err
	}
	switch a.Type {
	case "InstanceStart":
		if m.state != "Not started" {
			return onlyBefore
		}
		if m.boot == nil {
			return fault("Cannot start microvm without kernel configuration.")
		}
		if err := m.run(); err != nil {
			return fault("Cannot start the microvm: " + err.Error())
		}
		m.state = "Running"
		return nil
	case "FlushMetrics", "SendCtrlAltDel":
		if m.state == "Not started" {
			return onlyAfter
		}
		return nil
	}
	return fault(fmt.Sprintf("unknown variant `%s`", a.Type))
}

// at is where a path of the jail is.
func (m *machine) at(path string) string { return filepath.Join(m.root, filepath.Join("/", path)) }

// opens reports whether the jail's user could open the file.
func (m *machine) opens(path string, write bool) error {
	info, err := os.Stat(m.at(path))
	if err != nil {
		return fault(path + ": No such file or directory (os error 2)")
	}
	need, shift := os.FileMode(0o4), 0
	if write {
		need = 0o6
	}
	if info.Sys().(*syscall.Stat_t).Uid == m.uid {
		shift = 6
	}
	if info.Mode().Perm()>>shift&need != need {
		return fault(path + ": Permission denied (os error 13)")
	}
	return nil
}
