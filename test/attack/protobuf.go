// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"

	"github.com/rogpeppe/go-internal/testscript"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
)

// protobuf FILE NAME IMAGE [COMMAND]: a deployment as the API server's binary format writes it.
func (a *attack) protobuf(ts *testscript.TestScript, args []string) error {
	labels := map[string]string{"app": args[1]}
	one := int32(1)
	container := corev1.Container{Name: "main", Image: args[2]}
	if len(args) > 3 {
		container.Command = []string{args[3]}
	}
	d := &appsv1.Deployment{TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: metav1.ObjectMeta{Name: args[1], Namespace: "production"},
		Spec: appsv1.DeploymentSpec{Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{container}}}}}
	scheme := runtime.NewScheme()
	if err := appsv1.AddToScheme(scheme); err != nil {
		return err
	}
	var b bytes.Buffer
	if err := protobuf.NewSerializer(scheme, scheme).Encode(d, &b); err != nil {
		return err
	}
	return os.WriteFile(ts.MkAbs(args[0]), b.Bytes(), 0o644)
}
