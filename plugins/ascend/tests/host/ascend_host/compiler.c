// What torch-npu looks for in libacl_op_compiler.so: compile options and system parameters, which nothing reads.
#include <string.h>

#include "acl/acl_op_compiler.h"
#include "acl/acl_rt.h"

aclError aclSetCompileopt(aclCompileOpt option, const char *value) { return ACL_SUCCESS; }
size_t aclGetCompileoptSize(aclCompileOpt option) { return 16; }
aclError aclGetCompileopt(aclCompileOpt option, char *value, size_t n) { memset(value, 0, n); return ACL_SUCCESS; }
aclError aclrtCtxSetSysParamOpt(aclSysParamOpt option, int64_t value) { return ACL_SUCCESS; }
aclError aclrtSetSysParamOpt(aclSysParamOpt option, int64_t value) { return ACL_SUCCESS; }
aclError aclrtGetSysParamOpt(aclSysParamOpt option, int64_t *value) { *value = 0; return ACL_SUCCESS; }
