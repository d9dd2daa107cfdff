// The old operator interface (aclop): descriptors are handles without content, executions are written to the log.
#include "fake.h"

#include "acl/acl_op.h"
#include "acl/acl_op_compiler.h"

aclTensorDesc *aclCreateTensorDesc(aclDataType type, int dims, const int64_t *shape, aclFormat format) { return calloc(1, 64); }
void aclDestroyTensorDesc(const aclTensorDesc *d) { free((void *)d); }
aclError aclSetTensorFormat(aclTensorDesc *d, aclFormat format) { return ACL_SUCCESS; }
aclError aclSetTensorShape(aclTensorDesc *d, int dims, const int64_t *shape) { return ACL_SUCCESS; }
void aclSetTensorDescName(aclTensorDesc *d, const char *name) {}
aclError aclSetTensorPlaceMent(aclTensorDesc *d, aclMemType type) { return ACL_SUCCESS; }
aclDataBuffer *aclCreateDataBuffer(void *p, size_t n) { return calloc(1, 16); }
aclError aclDestroyDataBuffer(const aclDataBuffer *b) { free((void *)b); return ACL_SUCCESS; }
aclopAttr *aclopCreateAttr(void) { return calloc(1, 16); }
void aclopDestroyAttr(const aclopAttr *a) { free((void *)a); }

aclError aclopCompileAndExecute(const char *name, int inputs, const aclTensorDesc *const in[], const aclDataBuffer *const inb[], int outputs,
                                const aclTensorDesc *const out[], aclDataBuffer *const outb[], const aclopAttr *attr, aclopEngineType engine,
                                aclopCompileType compile, const char *path, aclrtStream stream) {
    const char *log = getenv("FAKE_ACLNN_LOG");
    FILE *file = log ? fopen(log, "a") : NULL;
    if (file) {
        fprintf(file, "aclop:%s(%d in, %d out)\n", name, inputs, outputs);
        fclose(file);
    }
    return ACL_SUCCESS;
}
