// SPDX-License-Identifier: Apache-2.0

// Package execcredential is client.authentication.k8s.io/v1 ExecCredential, as far as a plugin of kubectl reads and writes it. It stands
// apart from the commands, which link parts of gVisor that the fuzzer cannot instrument.
package execcredential

import (
	"encoding/json"
	"fmt"
	"time"

	"remit"
)

// Version and Kind are what kubectl has to ask for, and is answered.
const (
	Version = "client.authentication.k8s.io/v1"
	Kind    = "ExecCredential"
)

// Answer is what kubectl reads.
type Answer struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Spec       struct{} `json:"spec"`
	Status     Status   `json:"status"`
}

// Status is a token and until when it is to be used.
type Status struct {
	Expires time.Time `json:"expirationTimestamp"`
	Token   string    `json:"token"`
}

// Check refuses callers that speak another version, by what they say in KUBERNETES_EXEC_INFO; an unset variable is a person who tries the
// command. The error is of code invalid.
func Check(info string) *remit.Error {
	if info == "" {
		return nil
	}
	var in struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
	}
	if len(info) > 1<<20 || json.Unmarshal([]byte(info), &in) != nil {
		return &remit.Error{Code: remit.CodeInvalid, Msg: "KUBERNETES_EXEC_INFO is not an ExecCredential",
			Hint: "kubectl sets it; unset it to try the command by hand"}
	}
	if in.Kind != Kind || in.APIVersion != Version {
		return &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("KUBERNETES_EXEC_INFO asks for %.60q", in.APIVersion+" "+in.Kind),
			Hint: "write apiVersion: " + Version + " in the kubeconfig"}
	}
	return nil
}
