// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/x509"
	"fmt"
	"os"

	"remit"
)

// rootsOf reads the roots in a PEM file; nil, which is the system's, without one.
func rootsOf(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(b) {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "ca: " + file + " holds no certificate in PEM"}
	}
	return roots, nil
}
